//! What of the image's console is worth a person's screen.

/// How many spaces start a line about one fault of hardware.
const FAULT_INDENT: usize = 18;
/// How many start a line of the explanation of a fault.
const EXPLANATION_INDENT: usize = 20;

/// What starts the lines that tell of the machine, before the first step.
const INVENTORY: [&str; 7] = [
    "command line:",
    "map:",
    "image:",
    "module:",
    "free:",
    "RSDP ",
    "PCI:",
];

/// Chooses among the lines of one boot: no inventory, one fault with its explanation as an example
/// for all, and no line that a step's own line repeats.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    faults: u32,
}

impl Screen {
    /// Whether a line of text is shown; lines come in order.
    pub(crate) fn shows(&mut self, line: &str) -> bool {
        let indent = line.len() - line.trim_start().len();
        let text = line.trim_start();
        if indent == FAULT_INDENT {
            // Other lines with this indent are remarks of a step.
            let is_fault = text.contains(" blocked: ");
            self.faults += u32::from(is_fault);
            return is_fault && self.faults == 1;
        }
        if indent >= EXPLANATION_INDENT {
            return self.faults == 1;
        }
        let is_step = (text.split_once(": "))
            .is_some_and(|(_, rest)| rest.starts_with("ok ") || rest.trim_end() == "ok");
        !is_step && !INVENTORY.iter().any(|start| line.starts_with(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fault_is_shown_with_its_explanation_and_no_inventory() {
        let mut screen = Screen::default();
        for (line, shown) in [
            ("microhv 0.1.0", true),
            ("map: 0x0..0x9fc00 Ram", false),
            ("PCI: 00:01.0 1234:11e8 class 00ff00", false),
            ("back end: shadow", true),
            ("       translate: ok     128 pages", false),
            ("error: translate: Differs(0x1000)", true),
            ("       translate: FAILED", true),
            (
                "                  the IOAPIC: write and read blocked; 0x05",
                false,
            ),
            (
                "                  write of 0x5000 by 00:01.0 blocked: 05: no",
                true,
            ),
            ("                    root entry at 0x8800000: 0", true),
            (
                "                  read of 0x5000 by 00:01.0 blocked: 06: no",
                false,
            ),
            ("                    root entry at 0x8800000: 0", false),
        ] {
            assert_eq!(screen.shows(line), shown, "{line}");
        }
    }
}
