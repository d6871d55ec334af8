//! What `dist/` has for Kubernetes and libvirt: Kubernetes' own schemas take it, the program takes its flags, and QEMU is given
//! what `describe` prints. No cluster is needed for that, and none was there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};
use yaml_rust2::{Yaml, YamlLoader};

const PROGRAM: &str = "vfio-user-tpm";

/// Kinds that are not Kubernetes' own.
const FOREIGN: &[&str] = &["VirtualMachine"];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// YAML as the JSON that Kubernetes makes of it.
fn json_of(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::String(text) => json!(text),
        Yaml::Integer(number) => json!(number),
        Yaml::Boolean(value) => json!(value),
        Yaml::Array(items) => items.iter().map(json_of).collect(),
        Yaml::Hash(members) => {
            let name = |key: &Yaml| key.as_str().expect("names are texts").to_owned();
            Value::Object(members.iter().map(|(key, value)| (name(key), json_of(value))).collect::<Map<_, _>>())
        }
        other => panic!("nobody needs this here: {other:?}"),
    }
}

/// The objects in all manifests, each with the file in which it is.
fn manifests() -> Vec<(String, Value)> {
    let mut files: Vec<_> = fs::read_dir(repository("dist/kubernetes")).unwrap().map(|file| file.unwrap()).collect();
    files.sort_by_key(fs::DirEntry::file_name);
    let objects = files.iter().flat_map(|file| {
        let text = fs::read_to_string(file.path()).unwrap();
        let documents = YamlLoader::load_from_str(&text).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        documents
            .iter()
            .map(|document| (file.file_name().into_string().unwrap(), json_of(document)))
            .collect::<Vec<_>>()
    });
    objects.collect()
}

/// The specifications of all pods, be it of a pod or of a set of them.
fn pods() -> Vec<(String, Value)> {
    let of = |(file, object): (String, Value)| match object["kind"].as_str() {
        Some("Pod") => Some((file, object["spec"].clone())),
        Some("StatefulSet") => Some((file, object["spec"]["template"]["spec"].clone())),
        _ => None,
    };
    let pods: Vec<_> = manifests().into_iter().filter_map(of).collect();
    assert_eq!(pods.len(), 2, "{pods:?}");
    pods
}

fn containers(pod: &Value) -> Vec<&Value> {
    ["initContainers", "containers"].iter().flat_map(|key| pod[key].as_array().unwrap()).collect()
}

/// The container with this name.
fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    containers(pod).into_iter().find(|container| container["name"] == name).unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// What is wrong with an object, according to Kubernetes; `None` if nothing is.
fn fault(object: &Value) -> Option<String> {
    let kind = object["kind"].as_str().expect("a kind");
    let mut schema: Value = serde_json::from_str(&read("tests/kubernetes/schema.json")).unwrap();
    let root = schema["kinds"].as_object_mut().unwrap().remove(kind).unwrap_or_else(|| {
        panic!("no schema for {kind}: add it to tests/kubernetes/make-schema");
    });
    schema["$ref"] = root["$ref"].clone();
    let validator = jsonschema::validator_for(&schema).unwrap();
    validator.iter_errors(object).next().map(|error| format!("{}: {error}", error.instance_path()))
}

#[test]
fn kubernetes_takes_every_object_of_its_own_kinds() {
    let objects = manifests();
    let (foreign, own): (Vec<_>, Vec<_>) =
        objects.iter().partition(|(_, object)| FOREIGN.contains(&object["kind"].as_str().unwrap()));
    assert_eq!((own.len(), foreign.len()), (4, 1), "{objects:?}");
    for (file, object) in own {
        assert_eq!(fault(object), None, "{file}");
    }
}

/// Else the test above would say nothing.
#[test]
fn a_field_that_kubernetes_does_not_know_is_a_fault() {
    let (_, mut pod) = manifests().into_iter().find(|(_, object)| object["kind"] == "Pod").unwrap();
    pod["spec"]["initContainers"][0]["securityContext"]["readOnlyRootFileSystem"] = json!(true);
    let fault = fault(&pod).unwrap();
    assert!(fault.contains("readOnlyRootFileSystem"), "{fault}");
    pod["spec"]["initContainers"][0]["securityContext"] = json!({ "runAsUser": "65532" });
    assert!(self::fault(&pod).is_some(), "a user by name");
}

#[test]
fn no_container_has_more_rights_than_it_needs() {
    for (file, pod) in pods() {
        assert_eq!(pod["automountServiceAccountToken"], false, "{file}");
        let context = &pod["securityContext"];
        assert_eq!(context["runAsNonRoot"], true, "{file}");
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{file}");
        for container in containers(&pod) {
            let context = &container["securityContext"];
            let expected = json!({
                "runAsUser": context["runAsUser"],
                "runAsGroup": context["runAsGroup"],
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            });
            assert_eq!(context, &expected, "{file}");
            assert!(context["runAsUser"].as_u64() > Some(0), "{file}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{file}");
        }
    }
}

/// The VM's container reaches the socket, and nothing else of the TPM's.
#[test]
fn state_and_key_are_mounted_where_the_tpm_is_only() {
    for (file, pod) in pods() {
        let mounts = |name| {
            let mounts = container(&pod, name)["volumeMounts"].as_array().unwrap();
            mounts.iter().map(|mount| mount["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let (tpm, qemu) = (mounts("tpm"), mounts("qemu"));
        assert!(tpm.iter().any(|name| name == "tpm-state"), "{file}: {tpm:?}");
        let common: Vec<_> = tpm.iter().filter(|name| qemu.contains(name)).collect();
        assert_eq!(common, ["sockets"], "{file}");
    }
}

#[test]
fn the_program_takes_the_flags_that_it_is_given() {
    for (file, pod) in pods() {
        let args = texts(&container(&pod, "tpm")["args"]);
        let command = [PROGRAM.to_owned()].into_iter().chain(args).map(Into::into);
        vfio_user_tpm::cli::check(command).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

/// A VM is started when its TPM is up. A TPM that has failed may come back; a server that was started anew does not.
#[test]
fn the_tpm_is_asked_how_it_is_and_not_ended_for_it() {
    for (file, pod) in pods() {
        let tpm = container(&pod, "tpm");
        assert_eq!(tpm["restartPolicy"], "Always", "{file}: a sidecar");
        assert!(tpm["livenessProbe"].is_null(), "{file}");
        let control = texts(&tpm["args"]).into_iter().find(|arg| arg.starts_with("--control=")).unwrap();
        for probe in ["startupProbe", "readinessProbe"] {
            let command = texts(&tpm[probe]["exec"]["command"]);
            assert!(command[0].ends_with(PROGRAM) && command.contains(&control), "{file}: {command:?}");
            vfio_user_tpm::cli::check(command.into_iter().map(Into::into))
                .unwrap_or_else(|error| panic!("{file}: {error}"));
        }
    }
}

/// What `describe` prints for a socket and a folder, and the slot on the root bus.
fn described(socket: &str, folder: &str, slot: &str, format: &str) -> String {
    // The files are written as well, so the folder has to be one that can be made.
    let real = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vfio-user-tpm"))
        .args(["describe", "--socket-path", socket, "--pci-address", slot, "--format", format, "--description"])
        .arg(real.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().replace(real.path().to_str().unwrap(), folder)
}

#[test]
fn qemu_is_given_what_describe_prints() {
    for (file, pod) in pods() {
        let description = described("/run/vfio-user-tpm/socket", "/run/vfio-user-tpm/description", "05.0", "json");
        let description: Value = serde_json::from_str(&description).unwrap();
        let (command, expected) = (texts(&container(&pod, "qemu")["command"]), texts(&description["qemu"]));
        assert!(
            command.windows(expected.len()).any(|part| part == expected),
            "{file}: {command:?} has no {expected:?}"
        );
    }
}

/// Lines without what is in front of them.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}

#[test]
fn a_libvirt_domain_has_what_describe_prints() {
    let expected = described("/run/vfio-user-tpm/vm1/socket", "/run/vfio-user-tpm/vm1", "10.0", "libvirt");
    let (domain, expected) = (read("dist/libvirt/domain.xml"), lines(&expected).join("\n"));
    assert!(lines(&domain).join("\n").contains(&expected), "{expected}");
}

/// The hook, with a domain as KubeVirt hands it over.
#[test]
fn a_kubevirt_hook_adds_what_describe_prints() {
    let objects = manifests();
    let hook = objects.iter().find_map(|(_, object)| object["data"]["onDefineDomain"].as_str()).unwrap();
    let domain = "<domain type=\"kvm\">\n\t<name>$HOME `id`</name>\n</domain>";
    let output =
        Command::new("sh").args(["-c", hook, "onDefineDomain", "--vmi", "{}", "--domain", domain]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let folder = "/var/run/kubevirt-hooks/hook-sidecar-0/tpm";
    let expected = described(&format!("{folder}/socket"), &format!("{folder}/description"), "10.0", "libvirt");
    let expected =
        ["<domain type=\"kvm\">\n<name>$HOME `id`</name>", &lines(&expected).join("\n"), "</domain>"].join("\n");
    assert_eq!(lines(&String::from_utf8(output.stdout).unwrap()).join("\n"), expected);
}
