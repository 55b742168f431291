//! `Output`: where a scan puts what it passes, or only how long that is.

use std::ops::Range;

/// Short runs are copied as a whole block, so this much must be free behind the last byte, or a `Vec` grows.
pub(crate) const BLOCK: usize = 32;

pub(crate) trait Output {
    fn len(&self) -> usize;

    /// How many bytes fit before more memory is needed.
    fn room(&self) -> usize;

    /// Makes room for `more` bytes, and not for more than that.
    fn grow(&mut self, more: usize);

    /// Copies a part of `src`.
    fn copy(&mut self, src: &[u8], run: Range<usize>);

    fn push(&mut self, bytes: &[u8]);

    /// Forgets what stands behind the first `len` bytes.
    fn truncate(&mut self, len: usize);
}

impl Output for Vec<u8> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.len()
    }

    #[inline(always)]
    fn room(&self) -> usize {
        self.capacity() - self.len()
    }

    fn grow(&mut self, more: usize) {
        self.reserve_exact(more);
    }

    /// Most are short, so those need no call.
    #[inline(always)]
    fn copy(&mut self, src: &[u8], run: Range<usize>) {
        let len = run.end - run.start;
        if len <= BLOCK
            && let Some(block) = src[run.start..].first_chunk::<BLOCK>()
        {
            let end = self.len() + len;
            self.extend_from_slice(block);
            self.truncate(end);
        } else {
            self.extend_from_slice(&src[run]);
        }
    }

    #[inline(always)]
    fn push(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    #[inline(always)]
    fn truncate(&mut self, len: usize) {
        self.truncate(len);
    }
}

/// How long the output would be.
#[derive(Debug, Default)]
pub(crate) struct Length {
    len: usize,
    /// The longest it was before something was taken back.
    most: usize,
}

impl Length {
    /// What a `Vec` in its place needs room for, from first to last.
    pub(crate) fn most(&self) -> usize {
        self.most.max(self.len) + BLOCK
    }
}

impl Output for Length {
    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn room(&self) -> usize {
        usize::MAX
    }

    fn grow(&mut self, _more: usize) {}

    #[inline(always)]
    fn copy(&mut self, _src: &[u8], run: Range<usize>) {
        self.len += run.end - run.start;
    }

    #[inline(always)]
    fn push(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
    }

    #[inline(always)]
    fn truncate(&mut self, len: usize) {
        self.most = self.most.max(self.len);
        self.len = self.len.min(len);
    }
}
