//! Exits by kind.

macro_rules! kinds {
    ($($name:ident $text:literal,)*) => {
        /// A kind of exit.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub(crate) enum Kind { $($name,)* }

        const NAMES: &[&str] = &[$($text,)*];
    };
}

kinds! {
    Cpuid "cpuid",
    Msr "msr",
    PciPort "pci-port",
    PowerPort "power-port",
    UnitRead "unit-read",
    UnitWrite "unit-write",
    LocalApic "local-apic",
    IoApic "io-apic",
    PciMemory "pci-memory",
    Extension "extension",
}

/// How often each kind came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exits([u64; NAMES.len()]);

impl Exits {
    pub(crate) const fn new() -> Self {
        Self([0; NAMES.len()])
    }

    pub(crate) fn count(&mut self, kind: Kind) {
        if let Some(count) = self.0.get_mut(kind as usize) {
            *count += 1;
        }
    }

    /// By name, with the sum at the end.
    pub(crate) fn figures(&self) -> [(&'static str, u64); NAMES.len() + 1] {
        let mut figures = [("total", self.0.iter().sum()); NAMES.len() + 1];
        for ((figure, name), count) in figures.iter_mut().zip(NAMES).zip(self.0) {
            *figure = (name, count);
        }
        figures
    }
}
