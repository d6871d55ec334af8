//! What only root can do.

use std::io::Write;

/// Whether this user is root, who alone can become others and give files away. If not, it says that `test` has tested
/// nothing, past the harness, which keeps to itself what a test prints that passes.
pub fn can_become_others(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        let _ = writeln!(std::io::stderr(), "NOT TESTED, since this is not root: {test}");
    }
    root
}
