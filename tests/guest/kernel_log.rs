//! The guest's kernel log.

/// One message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelMessage {
    /// 0 (emergency) to 7 (debug); 4 is a warning.
    pub(crate) level: u8,
    /// The text, without the time.
    pub(crate) text: String,
}

impl KernelMessage {
    /// Reads the output of `dmesg -r`: lines `<LEVEL>[TIME] TEXT`.
    pub(crate) fn parse_all(log: &str) -> Vec<Self> {
        log.lines().filter_map(Self::parse).collect()
    }

    fn parse(line: &str) -> Option<Self> {
        let (number, rest) = line.strip_prefix('<')?.split_once('>')?;
        let number: u32 = number.parse().ok()?;
        let text = rest.split_once("] ").map_or(rest, |(_time, text)| text);
        // The facility is in the bits above.
        Some(Self { level: u8::try_from(number & 7).ok()?, text: text.to_owned() })
    }

    /// Whether this is a warning or worse that may have to do with the TPM.
    pub(crate) fn is_complaint(&self) -> bool {
        const TOPICS: [&str; 10] =
            ["tpm", "tis", "msft0101", "pnp0c31", "ima:", "acpi", "pci", "bar ", "resource", "iomem"];
        let text = self.text.to_lowercase();
        self.level <= 4 && TOPICS.iter().any(|topic| text.contains(topic))
    }
}
