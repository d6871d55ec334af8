//! Who may connect: the flags for the socket's rights, and for the users that are let in.

use clap::Args;
use nix::unistd::{Gid, Group, Uid, User};

use crate::vfio_user::SocketRights;

#[derive(Debug, Args)]
pub(super) struct AccessArgs {
    /// Rights of the socket's file, in octal; who may write to it can connect [default: 0600]
    #[arg(long, value_name = "MODE", value_parser = mode)]
    socket_mode: Option<u32>,

    /// Group of the socket's file, by name or number; it can connect with --socket-mode=0660
    #[arg(long, value_name = "GROUP", value_parser = group)]
    socket_group: Option<Gid>,

    /// Serve only processes of this user, by name or number, whoever else can connect. Can be given several
    /// times
    #[arg(long, value_name = "UID|USER", value_parser = user)]
    allow_uid: Vec<Uid>,
}

impl AccessArgs {
    /// The rights of the socket's file.
    pub(super) fn socket_rights(&self) -> SocketRights {
        let default = SocketRights::default();
        SocketRights { mode: self.socket_mode.unwrap_or(default.mode), group: self.socket_group }
    }

    /// Whether the socket is to have other rights than it has by default.
    pub(super) fn has_socket_rights(&self) -> bool {
        self.socket_mode.is_some() || self.socket_group.is_some()
    }

    /// The users whose processes are served; `None` for whoever can connect.
    pub(super) fn allowed_users(self) -> Option<Vec<Uid>> {
        Some(self.allow_uid).filter(|users| !users.is_empty())
    }
}

fn mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let is_octal = !digits.is_empty() && digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = is_octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten();
    mode.filter(|&mode| mode <= 0o777).ok_or_else(|| "permission bits in octal were expected, 0 to 0777".to_owned())
}

/// The last number stands for "none" in system calls.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&number| number != u32::MAX)
}

pub(super) fn group(text: &str) -> Result<Gid, String> {
    if let Some(number) = number(text) {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err("there is no such group".to_owned()),
        Err(errno) => Err(format!("the groups cannot be looked up: {errno}")),
    }
}

fn user(text: &str) -> Result<Uid, String> {
    if let Some(number) = number(text) {
        return Ok(Uid::from_raw(number));
    }
    match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid),
        Ok(None) => Err("there is no such user".to_owned()),
        Err(errno) => Err(format!("the users cannot be looked up: {errno}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_octal_and_has_permission_bits_only() {
        assert_eq!(mode("0660"), Ok(0o660));
        assert_eq!(mode("600"), Ok(0o600));
        assert_eq!(mode("0o666"), Ok(0o666));
        for text in ["", "0680", "1777", "-1", "+7", "rw", "99999999999999", "0x1ff"] {
            assert!(mode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn users_and_groups_have_names_and_numbers() {
        assert_eq!(user("root"), Ok(Uid::from_raw(0)));
        assert_eq!(user("1234567"), Ok(Uid::from_raw(1_234_567)));
        assert_eq!(group("root"), Ok(Gid::from_raw(0)));
        assert_eq!(group("77"), Ok(Gid::from_raw(77)));
        for text in ["", "-1", "4294967295", "no such name"] {
            assert!(user(text).is_err() && group(text).is_err(), "{text}");
        }
    }
}
