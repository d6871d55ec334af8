use std::fs;

use tempfile::TempDir;

use super::*;

/// A folder with files that QEMU could be given.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for name in ["vmlinuz", "initrd", "code.fd", "vars.fd", "default.bin"] {
            fs::write(place.0.path().join(name), name).unwrap();
        }
        place
    }

    /// `~` stands for the folder.
    fn words(&self, text: &str) -> Vec<OsString> {
        text.split_whitespace().map(|word| word.replace('~', self.0.path().to_str().unwrap()).into()).collect()
    }

    fn pin(&self, user: &str) -> anyhow::Result<Launched> {
        let default = self.0.path().join("default.bin");
        pin(&self.words(user), &tempfile::tempdir_in(&self.0).unwrap().keep(), || Ok(Some(default)))
    }

    #[track_caller]
    fn refused(&self, user: &str, expected: &str) {
        let message = format!("{:#}", self.pin(user).expect_err(user));
        assert!(message.contains(expected), "{user}: {message}");
    }
}

/// What the files have in them that the flags name, with the flags' words; the value itself of a command line.
fn measured(launched: &Launched) -> Vec<(String, String)> {
    let flag = |flag: &OsString| {
        let text = flag.to_str().unwrap().strip_prefix("--measure=").unwrap();
        let (word, value) = text.split_once('=').unwrap();
        let value = if word == "cmdline" { value.to_owned() } else { fs::read_to_string(value).unwrap() };
        (word.to_owned(), value)
    };
    launched.flags.iter().map(flag).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(word, value)| ((*word).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn kernel_command_line_initrd_and_default_firmware_are_measured() {
    let place = Place::new();
    let launched = place.pin("-m 1G --kernel ~/vmlinuz -append quiet -initrd ~/initrd").unwrap();
    let expected = [("kernel", "vmlinuz"), ("cmdline", "quiet"), ("initrd", "initrd"), ("firmware", "default.bin")];
    assert_eq!(measured(&launched), pairs(&expected));
    // QEMU has the copies that were measured, and nothing else is another.
    for (index, copy) in [(3, "vmlinuz"), (7, "initrd"), (9, "default.bin")] {
        let path = launched.arguments[index].to_str().unwrap();
        assert!(path.starts_with("/proc/self/fd/"));
        assert_eq!(fs::read_to_string(path).unwrap(), copy);
    }
    assert_eq!(launched.arguments[8], "-bios");
    assert_eq!(launched.arguments.last().unwrap(), "-no-user-config");
    assert!(launched.flags[3].to_str().unwrap().ends_with("/default.bin"), "the log has the file's name");
}

#[test]
fn the_last_of_several_counts_and_an_empty_command_line_is_one() {
    let place = Place::new();
    let launched = place.pin("-kernel /nowhere -kernel ~/vmlinuz -bios ~/code.fd").unwrap();
    let expected = [("kernel", "vmlinuz"), ("cmdline", ""), ("firmware", "code.fd")];
    assert_eq!(measured(&launched), pairs(&expected));
    // Without a kernel it is the firmware's business to find one.
    assert_eq!(measured(&place.pin("-initrd /nowhere disk.img").unwrap()), pairs(&[("firmware", "default.bin")]));
}

#[test]
fn firmware_in_flash_is_measured_if_it_cannot_change() {
    let place = Place::new();
    for flash in [
        "-drive if=pflash,format=raw,readonly=on,file=~/code.fd -drive if=pflash,format=raw,file=~/vars.fd",
        "-drive if=pflash,unit=1,format=raw,file=~/vars.fd -drive file=~/code.fd,unit=0,format=raw,if=pflash,readonly",
        "-blockdev driver=file,node-name=c,read-only=on,filename=~/code.fd -M q35,pflash0=c",
        "-blockdev raw,node-name=c,read-only=on,file.driver=file,file.filename=~/code.fd -machine pflash0=c",
        "-blockdev file,node-name=f,filename=~/code.fd -blockdev raw,node-name=c,read-only=on,file=f -M pflash0=c \
         -blockdev file,node-name=v,filename=~/vars.fd -machine pflash1=v",
        r#"-machine pflash0=c -blockdev {"driver":"file","node-name":"c","read-only":true,"filename":"~/code.fd"}"#,
    ] {
        let launched = place.pin(flash).unwrap();
        assert_eq!(measured(&launched), pairs(&[("firmware", "code.fd")]), "{flash}");
        let arguments = launched.arguments.join(OsStr::new(" ")).into_string().unwrap();
        assert!(
            !arguments.contains("code.fd")
                && arguments.contains("name=/proc/self/fd/") | arguments.contains("file=/proc/self/fd/")
        );
    }
}

#[test]
fn what_is_not_covered_is_refused() {
    let place = Place::new();
    for (user, expected) in [
        ("-fw_cfg name=opt/x,string=y", "-fw_cfg"),
        ("-device loader,file=x", "loader"),
        (r#"-device {"driver":"guest-loader","addr":1}"#, "guest-loader"),
        ("-device e1000,romfile=x", "romfile"),
        ("-global e1000.romfile=x", "romfile"),
        ("-option-rom x", "-option-rom"),
        ("--acpitable file=x", "-acpitable"),
        ("-smbios type=11,value=x", "-smbios"),
        ("-readconfig x", "-readconfig"),
        ("-incoming defer", "runs already"),
        ("-pflash ~/code.fd", "readonly=on"),
        ("-M q35,kernel=x", "give it as -kernel"),
        ("-machine firmware=x", "give it as -bios"),
        ("-kernel ~/vmlinuz -initrd a,b", "one file"),
        ("-kernel /nowhere", "/nowhere"),
        ("-bios nowhere.bin", "nowhere.bin"),
        ("-drive if=pflash,format=raw,file=~/code.fd", "read-only"),
        ("-drive if=pflash,readonly=on,file=~/code.fd", "format=raw"),
        ("-drive if=pflash,readonly=on,format=raw,unit=1,file=~/code.fd", "first"),
        ("-machine pflash0=c", "node-name=c"),
        ("-machine pflash1=c", "pflash0"),
        (
            "-M pflash0=c -blockdev raw,offset=4,read-only=on,node-name=c,file.driver=file,file.filename=~/code.fd",
            "offset",
        ),
        (
            "-M pflash0=c -blockdev qcow2,node-name=c,read-only=on,file.driver=file,file.filename=~/code.fd",
            "driver=file",
        ),
        ("-M pflash0=c -blockdev file,node-name=c,filename=~/code.fd", "read-only"),
    ] {
        place.refused(user, expected);
    }
    assert!(place.pin("-device e1000,romfile= -global virtio-net-pci.romfile=").is_ok());
}

#[test]
fn without_kernel_and_firmware_there_is_nothing_to_measure() {
    let place = Place::new();
    let nothing = pin(&place.words("-m 1G"), place.0.path(), || Ok(None));
    assert!(nothing.unwrap_err().to_string().contains("nothing to measure"));
}
