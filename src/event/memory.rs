//! `Memory`: what parsing a body takes, asked for before it is taken.

/// Why there is not enough memory for a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// Others hold too much of it.
    NotNow,
    /// It is more than anybody may ever have.
    Never,
}

/// Asks for so many bytes in all, on top of the text; what was granted before is part of it.
pub type Hold<'m> = dyn FnMut(usize) -> Result<(), Shortage> + 'm;

/// What one parse holds.
pub(super) struct Memory<'m> {
    hold: &'m mut Hold<'m>,
    lines: usize,
    names: usize,
}

impl<'m> Memory<'m> {
    pub(super) fn new(hold: &'m mut Hold<'m>) -> Memory<'m> {
        Memory { hold, lines: 0, names: 0 }
    }

    /// The output takes so many bytes.
    pub(super) fn lines(&mut self, bytes: usize) -> Result<(), Shortage> {
        (self.hold)(bytes + self.names)?;
        self.lines = bytes;
        Ok(())
    }

    /// The names of members take so many bytes.
    pub(super) fn names(&mut self, bytes: usize) -> Result<(), Shortage> {
        (self.hold)(self.lines + bytes)?;
        self.names = bytes;
        Ok(())
    }

    /// The output is gone.
    pub(super) fn no_lines(&mut self) {
        self.lines = 0;
    }
}
