//! Quoting for POSIX shells.

/// `arguments` on one line, each so quoted that a shell takes it for one word and changes nothing in it.
pub(super) fn command_line(arguments: &[String]) -> String {
    arguments.iter().map(|argument| word(argument)).collect::<Vec<_>>().join(" ")
}

fn word(argument: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=./,:+@%".contains(&byte);
    if !argument.is_empty() && argument.bytes().all(plain) {
        argument.to_owned()
    } else {
        // Within single quotes nothing is special but their end.
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_a_shell_would_change_is_quoted_and_the_rest_left_readable() {
        let arguments = ["-device", "{\"a\":1}", "it's", ""].map(str::to_owned);
        assert_eq!(command_line(&arguments), r#"-device '{"a":1}' 'it'\''s' ''"#);
    }

    #[test]
    fn a_shell_reads_back_the_same_words() {
        let arguments = ["file=/a b,,c", "$HOME `id` \\ \"", "''", "~", "*", "#", "a\nb", "é", ";", "!", "-n", "a=b"]
            .map(str::to_owned);
        let script = format!(r"printf '%s\0' {}", command_line(&arguments));
        let output = Command::new("/bin/sh").args(["-c", &script]).output().unwrap().stdout;
        assert_eq!(String::from_utf8(output).unwrap(), arguments.map(|argument| argument + "\0").concat());
    }
}
