//! What a TPM has acknowledged is there afterwards, whatever happens to its processes and its disk.
//!
//! `DURABILITY_SEED=N cargo test --test durability` repeats a run by the seed that it printed. What it cannot repeat is
//! where the kernel was when the blow fell.

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::process::until;
use common::raw_client::{DEVICE_RESET, RawClient};
use common::server::Server;
use common::tis::Tis;
use common::tpm_commands::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

/// Nothing that is expected takes this long; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

const STATE_FILE: &str = "tpm2.0-permanent.state";

/// Rounds of both tests together.
const ROUNDS: u32 = if cfg!(feature = "full-tests") { 500 } else { 25 };

/// Numbers that look random (SplitMix64).
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::env::var("DURABILITY_SEED").ok().map(|seed| seed.parse().expect("DURABILITY_SEED is a number"));
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
        let seed = seed.unwrap_or_else(now);
        println!("DURABILITY_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }

    /// Waits no longer than `limit`.
    fn wait(&mut self, limit: Duration) {
        let end = Instant::now() + Duration::from_nanos(self.below(limit.as_nanos().try_into().unwrap()));
        // Sleeping is coarser than what is to be hit.
        while Instant::now() < end {
            std::hint::spin_loop();
        }
    }
}

/// NV indices of either version.
#[derive(Clone, Copy)]
enum Version {
    V1_2,
    V2_0,
}

const SIZE: usize = 32;

impl Version {
    fn argument(self) -> OsString {
        match self {
            Self::V1_2 => "--tpm-version=1.2".into(),
            Self::V2_0 => "--tpm-version=2.0".into(),
        }
    }

    fn define(self, index: usize) -> Vec<u8> {
        match self {
            Self::V1_2 => tpm_1_2::nv_define(0x10 + u32::try_from(index).unwrap(), 32),
            Self::V2_0 => nv_define(0x0150_0000 + u32::try_from(index).unwrap(), 32),
        }
    }

    fn write(self, index: usize, value: [u8; SIZE]) -> Vec<u8> {
        match self {
            Self::V1_2 => tpm_1_2::nv_write(0x10 + u32::try_from(index).unwrap(), &value),
            Self::V2_0 => nv_write(0x0150_0000 + u32::try_from(index).unwrap(), &value),
        }
    }

    fn read(self, index: usize) -> Vec<u8> {
        match self {
            Self::V1_2 => tpm_1_2::nv_read(0x10 + u32::try_from(index).unwrap(), 32),
            Self::V2_0 => nv_read(0x0150_0000 + u32::try_from(index).unwrap(), 32),
        }
    }

    fn data(self, response: &[u8]) -> [u8; SIZE] {
        let data = match self {
            Self::V1_2 => tpm_1_2::nv_data(response),
            Self::V2_0 => nv_data(response),
        };
        data.try_into().unwrap()
    }
}

/// A TPM in a state folder, and what its NV indices must hold.
struct Ledger {
    version: Version,
    args: Vec<OsString>,
    /// Deleted at the end.
    _temp: TempDir,
    acknowledged: Vec<[u8; SIZE]>,
    /// A write that was neither acknowledged nor refused: it may have been done or not.
    under_way: Option<(usize, [u8; SIZE])>,
    written: u64,
}

const INDICES: usize = 4;

impl Ledger {
    fn new(version: Version, sealed: bool) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut args = vec!["--state-dir".into(), temp.path().join("state").into(), version.argument()];
        if sealed {
            let key = temp.path().join("key");
            fs::write(&key, (0..64).collect::<Vec<u8>>()).unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
            args.extend(["--key-file".into(), key.into()]);
        }
        let mut ledger =
            Self { version, args, _temp: temp, acknowledged: vec![[0; SIZE]; INDICES], under_way: None, written: 0 };
        let server = Server::with_args(&ledger.args);
        let mut tis = connect(&server);
        for index in 0..INDICES {
            ok(&mut tis, &version.define(index));
            let value = ledger.value();
            ok(&mut tis, &version.write(index, value));
            ledger.acknowledged[index] = value;
        }
        server.kill();
        ledger
    }

    /// Another value for each write.
    fn value(&mut self) -> [u8; SIZE] {
        self.written += 1;
        [self.written; SIZE / 8].map(u64::to_le_bytes).concat().try_into().unwrap()
    }

    /// Begins a write; it is under way until [`end`](Self::end).
    fn begin(&mut self, tis: &mut Tis, random: &mut Random) {
        let index = usize::try_from(random.below(INDICES as u64)).unwrap();
        let value = self.value();
        self.under_way = Some((index, value));
        tis.begin(&self.version.write(index, value));
    }

    fn end(&mut self, response: &[u8]) {
        // What was not acknowledged may have been done all the same.
        if code_of(response) == RC_SUCCESS {
            let (index, value) = self.under_way.take().unwrap();
            self.acknowledged[index] = value;
        }
    }

    /// Reads all back. The write that was under way has been done, or it never will be.
    #[track_caller]
    fn check(&mut self, tis: &mut Tis) {
        for (index, acknowledged) in self.acknowledged.iter_mut().enumerate() {
            let found = self.version.data(&ok(tis, &self.version.read(index)));
            let done = self.under_way.is_some_and(|under_way| under_way == (index, found));
            assert!(done || found == *acknowledged, "index {index}: {found:?}, and {acknowledged:?} was acknowledged");
            *acknowledged = found;
        }
        self.under_way = None;
    }

    /// A few writes, and a blow to the worker or the server in the middle of something.
    fn round(&mut self, random: &mut Random) {
        // About as long as a write, a reset or a start takes.
        const WRITE: Duration = Duration::from_millis(12);
        const START: Duration = Duration::from_millis(150);

        if random.below(5) == 0 {
            let server = Server::spawn(&self.args);
            random.wait(START);
            if random.below(2) == 0 {
                if let Some(worker) = server.engine() {
                    strike(&server, worker);
                }
                random.wait(START);
            }
            server.kill();
        }
        let server = Server::with_args(&self.args);
        let mut tis = connect(&server);
        self.check(&mut tis);
        for _ in 0..random.below(3) {
            self.begin(&mut tis, random);
            let response = tis.response();
            self.end(&response);
            assert!(self.under_way.is_none(), "{response:02x?}");
        }
        let worker = server.running_engine();
        match random.below(4) {
            // The worker in a write; the TPM is there again after a reset.
            0 => {
                self.begin(&mut tis, random);
                random.wait(WRITE);
                strike(&server, worker);
                let response = tis.response();
                self.end(&response);
                tis.reset();
                self.check(&mut tis);
            }
            // The server in a write, and its worker with it.
            1 => {
                self.begin(&mut tis, random);
                random.wait(WRITE);
            }
            // The worker in a reset.
            2 => {
                tis.client.request(DEVICE_RESET, &[]).ok();
                random.wait(WRITE);
                strike(&server, worker);
                tis.reset();
                self.check(&mut tis);
            }
            // The server in a reset.
            _ => {
                tis.client.request(DEVICE_RESET, &[]).ok();
                random.wait(WRITE);
            }
        }
        // The next server waits for the worker, which holds the lock for as long as it takes to die. Nothing here may take
        // the lock to see that: what another test is starting has a copy of it then, and this process is alive.
        server.kill();
    }

    fn last_check(mut self) {
        let server = Server::with_args(&self.args);
        self.check(&mut connect(&server));
        assert!(server.terminate().success());
    }
}

/// Kills a worker, and waits until the server knows it: a reset that comes before may still be the dead worker's.
fn strike(server: &Server, worker: Pid) {
    kill(worker, Signal::SIGKILL).unwrap();
    until(PATIENCE, || (server.engine() != Some(worker)).then_some(())).expect("the worker is gone");
}

fn connect(server: &Server) -> Tis {
    Tis::new(RawClient::connect(&server.socket()))
}

#[track_caller]
fn ok(tis: &mut Tis, command: &[u8]) -> Vec<u8> {
    let response = tis.run(command);
    assert_eq!(code_of(&response), RC_SUCCESS, "{command:02x?}");
    response
}

#[test]
fn acknowledged_writes_survive_kills_at_any_moment() {
    let mut random = Random::new();
    let mut plain = Ledger::new(Version::V2_0, false);
    let mut sealed = Ledger::new(Version::V2_0, true);
    for _ in 0..ROUNDS / 5 {
        for _ in 0..3 {
            plain.round(&mut random);
        }
        sealed.round(&mut random);
    }
    plain.last_check();
    sealed.last_check();
}

#[test]
fn acknowledged_writes_to_a_tpm_1_2_survive_kills_at_any_moment() {
    /// A TPM 1.2 without an owner takes 64 writes in its life.
    const ROUNDS_OF_A_LIFE: u32 = 15;
    let mut random = Random::new();
    let mut left = ROUNDS / 5;
    while left > 0 {
        let rounds = left.min(ROUNDS_OF_A_LIFE);
        let mut ledger = Ledger::new(Version::V1_2, false);
        for _ in 0..rounds {
            ledger.round(&mut random);
        }
        ledger.last_check();
        left -= rounds;
    }
}

/// A place for a state folder, of which the server can be denied room, and a server that has its state there.
enum Scarce {
    /// A small file system of its own, which only the server sees; we reach it through the server's root folder.
    FileSystem { _mount_point: TempDir, folder: PathBuf },
    /// A limit on the size of the files that the worker writes.
    Limit { _folder: TempDir, folder: PathBuf, worker: Pid },
}

impl Scarce {
    /// On a file system of its own; where it cannot be mounted, by a limit.
    fn file_system() -> (Server, Self) {
        let mount_point = tempfile::tempdir().unwrap();
        let state = mount_point.path().join("state");
        let mut command: Vec<OsString> = vec!["unshare".into(), "--mount".into()];
        if !geteuid().is_root() {
            command.extend(["--user".into(), "--map-root-user".into()]);
        }
        // What has got other rights forgets with whom it is to end.
        let script = r#"mount -t tmpfs -o size=1m none "$1" && shift && exec setpriv --pdeathsig KILL -- "$@""#;
        let shell = ["/bin/sh".into(), "-c".into(), script.into(), "sh".into(), mount_point.path().into()];
        command.extend(shell);
        let possible = Command::new(&command[0]).args(&command[1..]).arg("true").output();
        if !possible.as_ref().is_ok_and(|output| output.status.success()) {
            println!("no file system can be mounted here, a limit has to do: {possible:?}");
            return Self::limit();
        }
        let server = Server::through(&command, &["--state-dir".into(), state.clone().into()]);
        let folder = format!("/proc/{}/root{}", server.pid(), state.display()).into();
        (server, Self::FileSystem { _mount_point: mount_point, folder })
    }

    fn limit() -> (Server, Self) {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::with_state(folder.path());
        let worker = server.running_engine();
        let path = folder.path().to_owned();
        (server, Self::Limit { _folder: folder, folder: path, worker })
    }

    fn folder(&self) -> &Path {
        match self {
            Self::FileSystem { folder, .. } | Self::Limit { folder, .. } => folder,
        }
    }

    fn take_all_room(&self) {
        match self {
            Self::FileSystem { folder, .. } => {
                let filler = folder.join("filler");
                // To the last byte.
                assert!(fs::write(filler, vec![0; 2 << 20]).is_err(), "the file system is small");
            }
            Self::Limit { worker, .. } => limit_files(*worker, "1000:"),
        }
    }

    fn make_room(&self) {
        match self {
            Self::FileSystem { folder, .. } => fs::remove_file(folder.join("filler")).unwrap(),
            Self::Limit { worker, .. } => limit_files(*worker, "unlimited:"),
        }
    }
}

fn limit_files(worker: Pid, limit: &str) {
    let prlimit = Command::new("prlimit").args([format!("--pid={worker}"), format!("--fsize={limit}")]).status();
    assert!(prlimit.unwrap().success());
}

#[track_caller]
fn survives_a_full_disk((server, disk): (Server, Scarce)) {
    let version = Version::V2_0;
    let mut tis = connect(&server);
    ok(&mut tis, &version.define(0));
    ok(&mut tis, &version.write(0, [1; SIZE]));
    let before = fs::read(disk.folder().join(STATE_FILE)).unwrap();

    disk.take_all_room();
    assert_ne!(code_of(&tis.run(&version.write(0, [2; SIZE]))), RC_SUCCESS);
    assert_ne!(code_of(&tis.run(&version.write(0, [3; SIZE]))), RC_SUCCESS);
    assert!(fs::read(disk.folder().join(STATE_FILE)).unwrap() == before);
    // Whatever a TPM without room for its state can do: it says so.
    tis.reset();
    code_of(&tis.run(&version.write(0, [4; SIZE])));
    assert!(server.log().contains("cannot write the state file"), "{}", server.log());

    disk.make_room();
    tis.reset();
    assert_eq!(version.data(&ok(&mut tis, &version.read(0))), [1; SIZE]);
    ok(&mut tis, &version.write(0, [5; SIZE]));
    tis.reset();
    assert_eq!(version.data(&ok(&mut tis, &version.read(0))), [5; SIZE]);
}

#[test]
fn a_full_disk_is_an_error_and_nothing_is_lost() {
    survives_a_full_disk(Scarce::file_system());
}

#[test]
fn a_state_that_may_not_grow_is_an_error_and_nothing_is_lost() {
    survives_a_full_disk(Scarce::limit());
}

#[test]
fn a_folder_that_becomes_read_only_is_an_error_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    // Root may write everywhere, unless it gives that up.
    let weaken: &[OsString] = &["setpriv".into(), "--bounding-set=-all".into(), "--inh-caps=-all".into(), "--".into()];
    let command = if geteuid().is_root() { weaken } else { &["env".into()] };
    let server = Server::through(command, &["--state-dir".into(), folder.path().into()]);
    let version = Version::V2_0;
    let mut tis = connect(&server);
    ok(&mut tis, &version.define(0));
    ok(&mut tis, &version.write(0, [1; SIZE]));
    let before = fs::read(folder.path().join(STATE_FILE)).unwrap();
    let mode = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();

    mode(0o500);
    assert_ne!(code_of(&tis.run(&version.write(0, [2; SIZE]))), RC_SUCCESS);
    assert!(fs::read(folder.path().join(STATE_FILE)).unwrap() == before);
    assert!(server.log().contains("cannot write the state file"), "{}", server.log());
    mode(0o700);
    tis.reset();
    assert_eq!(version.data(&ok(&mut tis, &version.read(0))), [1; SIZE]);
    ok(&mut tis, &version.write(0, [2; SIZE]));
}

#[test]
fn a_folder_that_is_removed_is_an_error_and_no_new_tpm_takes_its_place() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("state");
    let server = Server::with_state(&folder);
    let version = Version::V2_0;
    let mut tis = connect(&server);
    ok(&mut tis, &version.define(0));
    fs::remove_dir_all(&folder).unwrap();
    assert_ne!(code_of(&tis.run(&version.write(0, [1; SIZE]))), RC_SUCCESS);
    tis.reset();
    assert_ne!(code_of(&tis.run(&version.define(1))), RC_SUCCESS);
    assert!(!folder.exists());
    assert!(server.log().contains("state file"), "{}", server.log());
    assert_eq!(server.terminate().code(), Some(1));
}

#[test]
fn a_damaged_state_is_refused_at_start_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let args: [OsString; 2] = ["--state-dir".into(), folder.path().into()];
    assert!(Server::with_args(&args).terminate().success());
    let file = folder.path().join(STATE_FILE);
    let good = fs::read(&file).unwrap();
    let truncated = [0, 1, 8, 12, 24, 56, 100, good.len() / 2, good.len() - 1].map(|length| good[..length].to_vec());
    let flipped = [0, 8, 12, 13, 14, 16, 24, 55, 60, 90, 128, good.len() / 2, good.len() - 1].map(|position| {
        let mut bytes = good.clone();
        bytes[position] ^= 1;
        bytes
    });
    for damaged in truncated.into_iter().chain(flipped) {
        fs::write(&file, &damaged).unwrap();
        let (status, log) = Server::fail(&args);
        assert_eq!(status.code(), Some(1));
        assert!(log.contains(STATE_FILE) && log.contains("backup"), "{log}");
        assert!(fs::read(&file).unwrap() == damaged);
    }
    fs::write(&file, &good).unwrap();
    assert!(Server::with_args(&args).terminate().success());
}
