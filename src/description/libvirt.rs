//! The elements by which a libvirt domain passes the device to QEMU.

use super::DescriptionError;

/// libvirt's namespace for what it hands to QEMU unseen.
const NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// The `<qemu:commandline>` element with these arguments, to be put into the `<domain>`.
pub(super) fn command_line(arguments: &[String]) -> Result<String, DescriptionError> {
    let mut xml = format!("<qemu:commandline xmlns:qemu='{NAMESPACE}'>\n");
    for argument in arguments {
        xml.push_str("  <qemu:arg value='");
        for character in argument.chars() {
            push_escaped(&mut xml, character).ok_or_else(|| DescriptionError::NotXml(argument.clone()))?;
        }
        xml.push_str("'/>\n");
    }
    xml.push_str("</qemu:commandline>\n");
    Ok(xml)
}

/// Adds one character of an attribute's value in single quotes; `None` if XML has no way to say it (XML 1.0, section
/// 2.2).
fn push_escaped(xml: &mut String, character: char) -> Option<()> {
    match character {
        '&' => xml.push_str("&amp;"),
        '<' => xml.push_str("&lt;"),
        '\'' => xml.push_str("&apos;"),
        // A parser would make plain ones spaces.
        '\t' => xml.push_str("&#9;"),
        '\n' => xml.push_str("&#10;"),
        '\r' => xml.push_str("&#13;"),
        '\0'..'\x20' | '\u{fffe}' | '\u{ffff}' => return None,
        _ => xml.push(character),
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(argument: &str) -> Result<String, DescriptionError> {
        command_line(&[argument.to_owned()])
    }

    #[test]
    fn what_would_end_the_attribute_or_be_changed_by_a_parser_is_escaped() {
        let xml = one("{\"a\":'<&>'}\t\n\ré").unwrap();
        assert!(xml.contains("value='{\"a\":&apos;&lt;&amp;>&apos;}&#9;&#10;&#13;é'"), "{xml}");
    }

    #[test]
    fn characters_that_xml_does_not_know_are_refused() {
        for argument in ["\u{7}", "\0", "\u{1f}", "\u{ffff}"] {
            assert!(matches!(one(argument), Err(DescriptionError::NotXml(_))), "{argument:?}");
        }
    }
}
