//! The fuzzer's bytes, read from front to back. What is missing at the end reads as zeros, so every input is a whole one.

use arbitrary::Unstructured;

/// Numbers on which bounds are built, beside the small ones.
const BOUNDS: [u64; 16] = [
    16,
    20,
    24,
    32,
    0xff,
    0xfff,
    0x1000,
    0x2000,
    0xffff,
    0x1_0000,
    0x10_0000,
    0x10_0010,
    0x7fff_ffff,
    0xffff_ffff,
    0xffff_ffff_ffff_f000,
    u64::MAX,
];

pub struct Tape<'a>(Unstructured<'a>);

impl<'a> Tape<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// A number below `count`, which is not 0.
    pub fn below(&mut self, count: u8) -> u8 {
        self.byte() % count
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    pub fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub fn u16(&mut self) -> u16 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub fn u32(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub fn u64(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// Small ones, those about a bound, any.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..=99 => small.into(),
            bound @ 100..=147 => {
                let bound = bound - 100;
                BOUNDS[usize::from(bound / 3)].wrapping_add(u64::from(bound % 3)).wrapping_sub(1)
            }
            148..=200 => self.u16().into(),
            201..=240 => self.u32().into(),
            _ => self.u64(),
        }
    }

    /// As [`number`](Self::number), cut.
    pub fn number32(&mut self) -> u32 {
        u32::try_from(self.number() & 0xffff_ffff).expect("cut")
    }

    /// As many bytes as the next one says, or as there are.
    pub fn short(&mut self) -> &'a [u8] {
        let count = self.byte().into();
        self.bytes(count)
    }

    /// `count` bytes, or as many as there are.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        self.0.bytes(count.min(self.0.len())).expect("they are there")
    }

    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(self.0.len())
    }

    /// One of `choices`, which are not none.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }
}
