//! What a TPM 2.0 does for a real guest, and what befalls it: upstream QEMU (q35, SeaBIOS), Debian's kernel, tpm2-tools.

mod common;
mod guest;

use common::server::Server;
use guest::{Guest, GuestConfig, Tpm};
use sha2::{Digest, Sha256};

const TPM: Tpm = Tpm::V2_0;

fn boot(server: &Server) -> Guest {
    Guest::boot(&GuestConfig { qemu_args: server.qemu_args(), ..GuestConfig::default() })
}

fn state_dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary folder")
}

/// The value of `name` in what tpm2-tools print as `name: value`; numbers in hex or decimal.
#[track_caller]
fn number(text: &str, name: &str) -> u64 {
    let value = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(found, value)| (found.trim() == name).then(|| value.trim()))
        .unwrap_or_else(|| panic!("no {name} in {text}"));
    match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => value.parse(),
    }
    .unwrap_or_else(|e| panic!("{name} is {value:?}: {e}"))
}

#[track_caller]
fn assert_no_lockout(guest: &mut Guest) {
    let properties = guest.check("tpm2_getcap properties-variable");
    assert_eq!(number(&properties, "TPM2_PT_LOCKOUT_COUNTER"), 0, "{properties}");
    assert_eq!(number(&properties, "inLockout"), 0, "{properties}");
}

/// Gives the NV index an authorisation that counts toward dictionary-attack lockout, and uses it once: the next reset without
/// an orderly TPM2_Shutdown counts as a failed try.
const USE_DICTIONARY_ATTACK_PROTECTION: &str = "
    tpm2_nvdefine -Q 0x1500017 -C o -s 4 -a 'authread|authwrite' -p secret &&
    printf data | tpm2_nvwrite -Q 0x1500017 -C 0x1500017 -P secret -i -";

#[test]
fn run_starts_a_guest_with_its_tpm_and_ends_both() {
    let dir = state_dir();
    let state = dir.path().join("tpm");
    let run = ["run", "--log-level=warn", "--state-dir", state.to_str().expect("path"), "--"];
    let launcher: Vec<_> = [env!("CARGO_BIN_EXE_vfio-user-tpm")].iter().chain(&run).map(Into::into).collect();
    for boots in 1..=2 {
        // Ends with QEMU's exit status, and with nothing said by either.
        let mut guest = Guest::boot(&GuestConfig { launcher: launcher.clone(), ..GuestConfig::default() });
        if boots == 1 {
            TPM.write_nv(&mut guest, "kept");
        }
        TPM.assert_nv(&mut guest, "kept");
        assert_eq!(guest.check("cat /sys/power/mem_sleep"), "[s2idle]\n", "S3 is switched off");
        assert_no_lockout(&mut guest);
        guest.quit();
    }
}

#[test]
fn an_swtpm_serves_a_guest_and_keeps_its_state_over_a_reboot() {
    let dir = state_dir();
    let args = ["--backend=swtpm", "--swtpm-exec", "--state-dir"].map(Into::into);
    let server = Server::with_args(&[&args[..], &[dir.path().into()]].concat());
    let mut guest = boot(&server);
    TPM.write_nv(&mut guest, "kept by swtpm");
    guest.check("tpm2_pcrextend 16:sha256=0000000000000000000000000000000000000000000000000000000000000001");
    guest.reboot();
    TPM.assert_nv(&mut guest, "kept by swtpm");
    assert_eq!(TPM.pcr(&mut guest, 16), TPM.zero());
    assert_no_lockout(&mut guest);
    guest.quit();
    assert!(server.terminate().success());
}

#[test]
fn tpm2_tools_work() {
    let server = Server::start();
    let mut guest = boot(&server);

    let random = |guest: &mut Guest| guest.check("tpm2_getrandom --hex 32");
    let (first, second) = (random(&mut guest), random(&mut guest));
    assert_eq!(first.len(), 64, "{first:?}");
    assert_ne!(first, second);

    assert_eq!(TPM.pcr(&mut guest, 16), TPM.zero());
    let digest = Sha256::digest(b"event");
    guest.check(&format!("tpm2_pcrextend 16:sha256={}", common::hex(digest)));
    let extended = Sha256::new().chain_update([0; 32]).chain_update(digest).finalize();
    assert_eq!(TPM.pcr(&mut guest, 16), common::hex(extended));

    let unsealed = guest.check(
        "tpm2_createprimary -Q -C o -c primary.ctx &&
         printf 'a secret' | tpm2_create -Q -C primary.ctx -i - -u sealed.pub -r sealed.priv &&
         tpm2_load -Q -C primary.ctx -u sealed.pub -r sealed.priv -c sealed.ctx &&
         tpm2_unseal -c sealed.ctx",
    );
    assert_eq!(unsealed, "a secret");

    TPM.write_nv(&mut guest, "kept in the TPM");
    TPM.assert_nv(&mut guest, "kept in the TPM");
    guest.quit();
}

#[test]
fn a_reboot_keeps_nv_clears_pcrs_and_counts_one_reset() {
    let server = Server::start();
    let mut guest = boot(&server);
    TPM.write_nv(&mut guest, "kept over a reboot");
    guest.check("tpm2_pcrextend 16:sha256=$(sha256sum /init | cut -c 1-64) 0:sha256=$(sha256sum /init | cut -c 1-64)");
    let (pcr_0, pcr_16) = (TPM.pcr(&mut guest, 0), TPM.pcr(&mut guest, 16));
    assert_ne!(pcr_16, TPM.zero());
    let before = guest.check("tpm2_readclock");

    guest.reboot();

    TPM.assert_nv(&mut guest, "kept over a reboot");
    assert_eq!(TPM.pcr(&mut guest, 16), TPM.zero());
    assert_ne!(TPM.pcr(&mut guest, 0), pcr_0);
    let after = guest.check("tpm2_readclock");
    assert_eq!(number(&after, "reset_count"), number(&before, "reset_count") + 1, "before {before}after {after}");
    assert_eq!(number(&after, "restart_count"), 0);
    guest.quit();
}

#[test]
fn a_server_restarted_between_boots_keeps_its_tpm() {
    let state = state_dir();
    let name_of_primary =
        "tpm2_createprimary -Q -C o -c p.ctx && tpm2_readpublic -Q -c p.ctx -n name && xxd -p -c 64 name";

    let server = Server::with_state(state.path());
    let mut guest = boot(&server);
    TPM.write_nv(&mut guest, "kept by the server");
    let primary = guest.check(name_of_primary);
    guest.quit();
    assert!(server.terminate().success());

    let server = Server::with_state(state.path());
    let mut guest = boot(&server);
    TPM.assert_nv(&mut guest, "kept by the server");
    assert_eq!(guest.check(name_of_primary), primary);
    guest.quit();
}

#[test]
fn sigterm_during_a_command_loses_nothing() {
    let state = state_dir();
    let server = Server::with_state(state.path());
    let mut guest = boot(&server);
    TPM.write_nv(&mut guest, "written before the end");
    guest.check(USE_DICTIONARY_ATTACK_PROTECTION);
    // Several at once, so that the TPM is hardly ever idle between two.
    guest.check(
        "for i in 1 2 3; do
             (while tpm2_createprimary -Q -C o -G rsa3072 -c key$i.ctx; do :; done) >/dev/null 2>&1 &
         done
         until ls key?.ctx >/dev/null 2>&1; do usleep 100000; done",
    );
    assert!(server.terminate().success());
    drop(guest);

    let server = Server::with_state(state.path());
    let mut guest = boot(&server);
    TPM.assert_nv(&mut guest, "written before the end");
    assert_eq!(guest.check("tpm2_nvread 0x1500017 -C 0x1500017 -P secret"), "data");
    assert_no_lockout(&mut guest);
    guest.quit();
}

#[test]
fn a_killed_engine_fails_commands_until_a_reset_brings_a_new_one() {
    let state = state_dir();
    let server = Server::with_state(state.path());
    let mut guest = boot(&server);
    TPM.write_nv(&mut guest, "written before the crash");

    server.kill_engine();
    let output = guest.run("tpm2_getrandom --hex 8");
    assert_ne!(output.status, 0);
    assert!(output.stderr.contains("(0x00000101)") || output.stderr.contains("(0x101)"), "{}", output.stderr);

    guest.system_reset();
    TPM.assert_nv(&mut guest, "written before the crash");
    assert_eq!(guest.check("tpm2_getrandom --hex 8").len(), 16);
    guest.quit();
}

/// The machine is reset while the firmware runs, as well as under Linux. Resets between commands that use an authorisation,
/// where each would count, are cheaper without a guest.
#[test]
fn a_hundred_abrupt_resets_cause_no_lockout() {
    let server = Server::start();
    let mut guest = boot(&server);
    guest.check(USE_DICTIONARY_ATTACK_PROTECTION);
    for _ in 0..99 {
        guest.press_reset();
    }
    guest.system_reset();
    assert_no_lockout(&mut guest);
    assert_eq!(guest.check("tpm2_nvread 0x1500017 -C 0x1500017 -P secret"), "data");
    guest.quit();
}

#[test]
fn pcr_17_extends_from_locality_3_and_not_from_0() {
    let server = Server::start();
    let mut guest = boot(&server);
    let response_codes = guest.check(
        ". /lib/tis.sh
         tis_unbind &&
         tis_request 0 && tis_pcr_extend 0 17 && tis_release 0 &&
         tis_request 3 && tis_pcr_extend 3 17 && tis_release 3",
    );
    // TPM_RC_LOCALITY, TPM_RC_SUCCESS.
    assert_eq!(response_codes, "00000907\n00000000\n");
    guest.quit();
}

#[test]
fn guest_root_cannot_use_the_platform_hierarchy() {
    let server = Server::start();
    let mut guest = boot(&server);
    TPM.write_nv(&mut guest, "of the owner");
    for script in [
        "tpm2_clear -c p",
        "tpm2_hierarchycontrol -C p shEnable clear",
        "tpm2_changeauth -c p new-password",
        "tpm2_createprimary -C p",
        "tpm2_nvdefine 0x1400001 -C p -s 8",
        "tpm2_clearcontrol -C p s",
    ] {
        let output = guest.run(script);
        assert_ne!(output.status, 0, "{script}: {}", output.stdout);
    }
    // The owner's hierarchy is the guest's.
    TPM.assert_nv(&mut guest, "of the owner");
    guest.check("tpm2_createprimary -Q -C o -c primary.ctx && tpm2_changeauth -Q -c o owner-password");
    guest.quit();
}
