//! Lines that are asked for before they are read or written, so that they are on their way from memory when something else is
//! computed.

use std::ops::Range;

#[cfg(target_feature = "sse")]
use safe_arch::prefetch_t0 as ask_for;

use crate::number::Number;

/// Bytes between what is read and what is asked for meanwhile.
pub(crate) const DISTANCE: usize = 2048;

/// Elements from a row to what is asked for while it is read or written: the next row, or what comes at a [`DISTANCE`].
#[inline(always)]
pub(crate) fn row_ahead<T>(features: usize) -> usize {
    features.max(DISTANCE / size_of::<T>())
}

/// What follows some elements of an array, at a [`DISTANCE`] as a rule: its lines are asked for while these are read, so that
/// they are on their way from memory before anything waits for them.
#[derive(Clone, Copy)]
pub(crate) struct Prefetch<'a, T>(&'a [T]);

impl<'a, T: Number> Prefetch<'a, T> {
    /// Asks for nothing.
    pub(crate) const NONE: Self = Self(&[]);

    /// For who reads `array` from element `start` on.
    #[inline(always)]
    pub(crate) fn new(array: &'a [T], start: usize) -> Self {
        Self::these(array).skip(start + DISTANCE / size_of::<T>())
    }

    /// For who reads these arrays from element `start` on; asks for nothing, if not `ask`.
    #[inline(always)]
    pub(crate) fn of_all<const A: usize>(ask: bool, arrays: [&'a [T]; A], start: usize) -> [Self; A] {
        if ask { Self::all_from(arrays, start + DISTANCE / size_of::<T>()) } else { [Self::NONE; A] }
    }

    /// For who reads from element `start` on of each of `arrays`.
    #[inline(always)]
    pub(crate) fn all_from<const A: usize>(arrays: [&'a [T]; A], start: usize) -> [Self; A] {
        let mut all = [Self::NONE; A];
        for a in 0..A {
            all[a] = Self::these(arrays[a]).skip(start);
        }
        all
    }

    /// For who reads something else, one element for each of these.
    #[inline(always)]
    pub(crate) fn these(elements: &'a [T]) -> Self {
        Self(elements)
    }

    /// For who reads from element `at` on.
    #[inline(always)]
    pub(crate) fn skip(self, at: usize) -> Self {
        Self(self.0.get(at..).unwrap_or_default())
    }

    /// The first `A` of `all`.
    #[inline(always)]
    pub(crate) fn first<const N: usize, const A: usize>(all: [Self; N]) -> [Self; A] {
        let mut first = [Self::NONE; A];
        first.copy_from_slice(&all[..A]);
        first
    }

    /// For who reads so many elements.
    #[inline(always)]
    pub(crate) fn until(self, end: usize) -> Self {
        Self(&self.0[..end.min(self.0.len())])
    }

    /// [`Prefetch::skip`] of each.
    #[inline(always)]
    pub(crate) fn skip_all<const A: usize>(mut all: [Self; A], at: usize) -> [Self; A] {
        for prefetch in &mut all {
            *prefetch = prefetch.skip(at);
        }
        all
    }

    /// Asks for a line of each, when element `at` is read.
    #[inline(always)]
    pub(crate) fn lines<const A: usize>(all: [Self; A], at: usize) {
        for prefetch in all {
            if let Some(element) = prefetch.0.get(at) {
                ask_for(element);
            }
        }
    }
}

/// Bytes that follow each other in memory: no CPU reads ahead beyond them.
pub(crate) const PAGE: usize = 4096;

/// Asks for the first line of the page that begins behind the first line of `next`, if one does: elements that are read or
/// written when others have been. They are at most a [`PAGE`].
///
/// On AVX-512, where asking for all lines costs more than it brings, rows from memory take 0.8 to 0.95 of the time with it, as a
/// rule, between their passes: in forward for y and then x, in backward for x and dy (for dx it costs more than it brings).
#[inline(always)]
pub(crate) fn ask_for_page<T: Number>(array: &[T], next: Range<usize>) {
    let second = next.start + T::LANES;
    let address = array.as_ptr().addr() + second * size_of::<T>();
    let page = second + (PAGE - address % PAGE) / size_of::<T>();
    if page < next.end + T::LANES {
        Prefetch::lines([Prefetch::these(array)], page);
    }
}

/// [`ask_for_page`] of any number of elements of each of some arrays.
#[inline(always)]
pub(crate) fn ask_for_pages<T: Number, const A: usize>(arrays: [&[T]; A], next: Range<usize>) {
    let page = PAGE / size_of::<T>();
    for start in next.clone().step_by(page) {
        for array in arrays {
            ask_for_page(array, start..next.end.min(start + page));
        }
    }
}

/// There is no safe way to ask, and none of the kernels does.
#[cfg(not(target_feature = "sse"))]
fn ask_for<T>(_element: &T) {}
