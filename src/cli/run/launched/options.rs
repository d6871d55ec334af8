//! Values of QEMU's options: `key=value,…`, or JSON.

use std::ffi::OsStr;

use anyhow::Context;
use serde_json::Value;

/// Keys and values in their order. What is nested in JSON has keys with dots, as QEMU has them in the other form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pairs: Vec<(String, String)>,
}

impl Options {
    /// Reads one value; `implied` is the key of a first word without one.
    pub(super) fn parse(value: &OsStr, implied: &str) -> anyhow::Result<Self> {
        let text = value.to_str().with_context(|| format!("{value:?} in QEMU's arguments is no UTF-8"))?;
        if text.starts_with('{') {
            let json = serde_json::from_str(text).with_context(|| format!("{text} in QEMU's arguments is no JSON"))?;
            let mut pairs = Vec::new();
            flatten("", &json, &mut pairs);
            return Ok(Self { pairs });
        }
        let pair = |(number, word): (usize, String)| match word.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None if number == 0 => (implied.to_owned(), word),
            None => (word, "on".to_owned()),
        };
        Ok(Self { pairs: words(text).into_iter().enumerate().map(pair).collect() })
    }

    /// Of several values of a key the last counts.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(one, _)| one == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(key, _)| key.as_str())
    }

    /// Whether a switch is on, under one of these names.
    pub(super) fn is_on(&self, names: &[&str]) -> bool {
        names.iter().any(|name| matches!(self.get(name), Some("on" | "true" | "yes" | "y")))
    }

    pub(super) fn set(&mut self, key: &str, value: &str) {
        self.pairs.retain(|(one, _)| one != key);
        self.pairs.push((key.to_owned(), value.to_owned()));
    }

    /// For QEMU, which takes the form with commas where it takes JSON.
    pub(super) fn to_argument(&self) -> String {
        let pairs = self.pairs.iter().map(|(key, value)| format!("{key}={}", value.replace(',', ",,")));
        pairs.collect::<Vec<_>>().join(",")
    }
}

/// What is between single commas; two stand for one.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(character);
        }
    }
    words
}

fn flatten(prefix: &str, value: &Value, pairs: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, pairs);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                flatten(&format!("{prefix}.{index}"), item, pairs);
            }
        }
        Value::Bool(switch) => pairs.push((prefix.to_owned(), if *switch { "on" } else { "off" }.to_owned())),
        Value::String(text) => pairs.push((prefix.to_owned(), text.clone())),
        other => pairs.push((prefix.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Options {
        Options::parse(OsStr::new(text), "driver").unwrap()
    }

    #[test]
    fn both_forms_are_read_alike() {
        let plain = parse("raw,node-name=code,read-only=on,file.driver=file,file.filename=/a,,b=c");
        let json =
            r#"{"driver":"raw","node-name":"code","read-only":true,"file":{"driver":"file","filename":"/a,b=c"}}"#;
        let json = parse(json);
        for options in [plain, json] {
            let values = ["driver", "node-name", "file.driver", "file.filename"].map(|key| options.get(key).unwrap());
            assert_eq!(values, ["raw", "code", "file", "/a,b=c"]);
            assert!(options.is_on(&["read-only"]));
            assert_eq!(parse(&options.to_argument()).get("file.filename"), Some("/a,b=c"));
        }
    }

    #[test]
    fn the_last_value_of_a_key_counts() {
        let mut options = parse("if=pflash,file=a,readonly,file=b");
        assert_eq!((options.get("file"), options.is_on(&["read-only", "readonly"])), (Some("b"), true));
        options.set("file", "/x,y");
        assert_eq!(options.to_argument(), "if=pflash,readonly=on,file=/x,,y");
    }

    #[test]
    fn what_is_no_json_is_said() {
        assert!(Options::parse(OsStr::new("{driver"), "driver").unwrap_err().to_string().contains("no JSON"));
    }
}
