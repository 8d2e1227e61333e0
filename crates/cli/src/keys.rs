//! The escape key on a terminal: Ctrl-a, and what follows it.

/// Ctrl-a.
const ESCAPE: u8 = 1;

/// What the user typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// Bytes for the guest.
    Input(Vec<u8>),
    /// Ctrl-a x.
    End,
    /// Ctrl-a c.
    Monitor,
}

/// Finds escapes in what is typed.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    escaped: bool,
}

impl Keys {
    /// Sorts `bytes`.
    pub(crate) fn sort(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let mut typed = Vec::new();
        let mut input = Vec::new();
        for &byte in bytes {
            if !std::mem::take(&mut self.escaped) {
                if byte == ESCAPE {
                    self.escaped = true;
                } else {
                    input.push(byte);
                }
                continue;
            }
            let action = match byte {
                b'x' | b'X' => Typed::End,
                b'c' | b'C' => Typed::Monitor,
                b'a' | b'A' | ESCAPE => {
                    input.push(ESCAPE);
                    continue;
                }
                // Not one of ours: the guest gets neither.
                _ => continue,
            };
            if !input.is_empty() {
                typed.push(Typed::Input(std::mem::take(&mut input)));
            }
            typed.push(action);
        }
        if !input.is_empty() {
            typed.push(Typed::Input(input));
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_may_be_split_over_reads() {
        let mut keys = Keys::default();
        assert_eq!(keys.sort(b"ls\x01"), [Typed::Input(b"ls".to_vec())]);
        assert_eq!(keys.sort(b"xq"), [Typed::End, Typed::Input(b"q".to_vec())]);
        assert_eq!(
            keys.sort(b"a\x01c"),
            [Typed::Input(b"a".to_vec()), Typed::Monitor]
        );
    }

    #[test]
    fn the_escape_itself_can_be_sent() {
        assert_eq!(
            Keys::default().sort(b"\x01a\x01\x01"),
            [Typed::Input(vec![1, 1])]
        );
        assert_eq!(Keys::default().sort(b"\x01z"), []);
    }
}
