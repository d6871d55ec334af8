//! The requests of swtpm's control channel that the backend does not make: by a client that waits for each answer, to each
//! swtpm that is there.

mod common;

use common::engine::{NV, PATIENCE};
use common::swtpm::{Client, Listening, programs};
use common::tpm_commands::*;
use tempfile::TempDir;
use vfio_user_tpm::backend::swtpm::control::{Capabilities, Reply, Request, ResultCode};
use vfio_user_tpm::state::Blob;
use vfio_user_tpm::tpm::{Locality, TpmVersion};

const V1_2: TpmVersion = TpmVersion::V1_2;
const V2_0: TpmVersion = TpmVersion::V2_0;

fn attached(version: TpmVersion) -> impl Iterator<Item = (TempDir, Listening)> {
    programs().iter().map(move |program| {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let listening = Listening::start(program, version, folder.path(), &[]);
        (folder, listening)
    })
}

#[test]
fn a_request_to_cancel_is_read_when_the_command_has_ended() {
    for (_folder, swtpm) in attached(V2_0) {
        let mut client = Client::connect(&swtpm.control());
        client.set_data_channel();
        client.done(Request::Init { delete_volatile: false });
        client.run(&startup_clear());
        client.begin(&create_primary_rsa(2048, 1));
        client.done(Request::CancelTpmCmd);
        assert_eq!(code_of(&client.response()), RC_SUCCESS);
    }
}

#[test]
fn a_hash_sequence_sets_pcr_17() {
    for (_folder, swtpm) in attached(V2_0) {
        let mut client = Client::connect(&swtpm.control());
        client.set_data_channel();
        client.done(Request::Init { delete_volatile: false });
        client.run(&startup_clear());
        assert_eq!(digest_of(&client.run(&pcr_read(17))), [0xff; 32]);
        client.done(Request::HashStart);
        client.done(Request::HashData(&[5; 4096]));
        client.done(Request::HashEnd);
        assert!(![[0xff; 32], [0; 32]].contains(&digest_of(&client.run(&pcr_read(17)))));
    }
}

#[test]
fn state_blobs_carry_a_running_tpm_to_another_swtpm() {
    for ((_from, source), (_to, target)) in attached(V2_0).zip(attached(V2_0)) {
        let mut client = Client::connect(&source.control());
        client.set_data_channel();
        client.done(Request::Init { delete_volatile: false });
        for command in [startup_clear(), pcr_extend(16, [7; 32]), nv_define(NV, 4), nv_write(NV, b"move")] {
            assert_eq!(code_of(&client.run(&command)), RC_SUCCESS);
        }
        let digest = digest_of(&client.run(&pcr_read(16)));
        let blobs = [Blob::Permanent, Blob::Volatile].map(|blob| {
            let request = Request::GetStateBlob { blob, offset: 0, decrypted: false };
            let data = client.ask(request, |reply| match reply {
                Reply::StateBlob { encrypted: false, total, data } if data.len() == total => data.to_vec(),
                other => panic!("{other:?}"),
            });
            (blob, data)
        });
        let none = Request::GetStateBlob { blob: Blob::SaveState, offset: 0, decrypted: false };
        client.ask(none, |reply| assert!(matches!(reply, Reply::Refused(_)), "{reply:?}"));

        let mut client = Client::connect(&target.control());
        client.set_data_channel();
        client.done(Request::Stop);
        for (blob, data) in &blobs {
            client.done(Request::SetStateBlob { blob: *blob, encrypted: false, data });
        }
        client.done(Request::Init { delete_volatile: true });
        assert_eq!(digest_of(&client.run(&pcr_read(16))), digest);
        assert_eq!(nv_data(&client.run(&nv_read(NV, 4))), b"move");
    }
}

#[test]
fn each_request_is_refused_in_the_wrong_state_and_understood_in_the_right_one() {
    const NOT_NOW: Reply<'_> = Reply::Refused(ResultCode(0x0a));
    for (_folder, mut swtpm) in attached(V1_2).chain(attached(V2_0)) {
        let mut client = Client::connect(&swtpm.control());
        let capabilities = client.ask(Request::GetCapability, |reply| match reply {
            Reply::Capabilities(capabilities) => capabilities,
            other => panic!("{other:?}"),
        });
        assert!(capabilities.contains(Capabilities::from_bits_retain(0x7fff)), "{capabilities:?}");
        let blob = Request::GetStateBlob { blob: Blob::Permanent, offset: 0, decrypted: false };
        let locality = Locality::FOUR;
        let running =
            [Request::GetTpmEstablished, Request::ResetTpmEstablished(locality), Request::StoreVolatile, blob];
        for request in running {
            client.ask(request, |reply| assert_eq!(reply, NOT_NOW, "{request:?}"));
        }
        client.done(Request::SetLocality(locality));
        client.ask(Request::GetConfig, |reply| assert!(matches!(reply, Reply::Config(_)), "{reply:?}"));
        client.ask(Request::GetInfo, |reply| assert!(matches!(reply, Reply::Info(_)), "{reply:?}"));
        let lock = Request::LockStorage { retries: 1 };
        let can_lock = capabilities.contains(Capabilities::LOCK_STORAGE);
        client.ask(lock, |reply| assert_eq!(reply, if can_lock { Reply::Done } else { NOT_NOW }));
        client.done(Request::Init { delete_volatile: true });
        client.ask(Request::SetBufferSize(4096), |reply| assert_eq!(reply, NOT_NOW));
        client.ask(Request::SetBufferSize(0), |reply| {
            assert!(matches!(reply, Reply::BufferSize { size: 4096, maximum: 4096, .. }), "{reply:?}");
        });
        client.ask(Request::GetTpmEstablished, |reply| assert_eq!(reply, Reply::TpmEstablished(false)));
        client.done(Request::ResetTpmEstablished(locality));
        client.ask(Request::ResetTpmEstablished(Locality::ZERO), |reply| {
            assert_eq!(reply, Reply::Refused(ResultCode::BAD_LOCALITY));
        });
        client.done(Request::Shutdown);
        assert!(swtpm.process.wait(PATIENCE).is_some_and(|status| status.success()));
    }
}
