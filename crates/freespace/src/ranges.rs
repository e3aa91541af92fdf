//! Sorted sets of disjoint ranges: of bytes on a disk, or of blocks in a filesystem.

use std::ops::Range;

/// Number of ranges at which [`RangeSet::push`] begins to leave out short ones: 16 MiB of memory.
const MOST: usize = 1 << 20;

/// Set of numbers, kept as sorted ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range<u64>>,
    /// Length below which [`RangeSet::push`] leaves a range out. Doubled each time that there are too many.
    least: u64,
}

impl RangeSet {
    /// Makes the set of all numbers in `ranges`, which may overlap and come in any order.
    #[must_use]
    pub fn union_of(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Self { ranges: joined, least: 0 }
    }

    /// Adds a range that begins at or after the end of the last one. So that a filesystem in splinters can't
    /// take all memory, sets of more than a million ranges lose their shortest ones: the result depends on
    /// the ranges alone.
    ///
    /// # Panics
    /// If the range begins before the last one ends.
    pub fn push(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        if let Some(last) = self.ranges.last_mut() {
            assert!(last.end <= range.start, "ranges come in order");
            if last.end == range.start {
                last.end = range.end;
                return;
            }
            // The last range can't grow any more, so that its length is known.
            if last.end - last.start < self.least {
                self.ranges.pop();
            }
        }
        self.ranges.push(range);
        while self.ranges.len() > MOST {
            self.least = (self.least * 2).max(2);
            let least = self.least;
            let last = self.ranges.len() - 1;
            let mut index = 0;
            self.ranges.retain(|range| {
                index += 1;
                index > last || range.end - range.start >= least
            });
        }
    }

    /// Returns the ranges in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// True if the set has no number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns how many numbers are in the set.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).fold(0, u64::saturating_add)
    }

    /// Returns the part of `range` that is in the set, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let from = self.ranges.partition_point(|own| own.end <= range.start);
        self.ranges[from..]
            .iter()
            .take_while(move |own| own.start < range.end)
            .map(move |own| own.start.max(range.start)..own.end.min(range.end))
            .filter(|part| part.start < part.end)
    }

    /// Returns the part of `range` that is not in the set, in order.
    pub fn outside(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let end = range.end;
        let mut at = range.start;
        self.within(range).chain(std::iter::once(end..end)).filter_map(move |own| {
            let gap = at..own.start;
            at = own.end;
            (gap.start < gap.end).then_some(gap)
        })
    }

    /// Returns a number that both `range` and the set have, the first one.
    #[must_use]
    pub fn first_within(&self, range: Range<u64>) -> Option<u64> {
        self.within(range).next().map(|part| part.start)
    }

    /// Returns what is in this set and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Self::default();
        for range in &self.ranges {
            other.outside(range.clone()).for_each(|part| left.push(part));
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(set: &RangeSet) -> Vec<u64> {
        set.ranges.iter().cloned().flatten().collect()
    }

    fn lists() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::vec((0..200_u64, 0..20_u64).prop_map(|(at, length)| at..at + length), 0..20)
    }

    proptest! {
        #[test]
        fn a_set_is_what_a_list_of_its_numbers_is(one in lists(), other in lists(), ask in (0..220_u64, 0..60_u64)) {
            let mut expected: Vec<u64> = one.iter().cloned().flatten().collect();
            expected.sort_unstable();
            expected.dedup();
            let set = RangeSet::union_of(one);
            prop_assert_eq!(numbers(&set), &expected[..]);
            prop_assert!(set.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(set.total(), u64::try_from(expected.len()).expect("small"));

            let asked = ask.0..ask.0 + ask.1;
            let inside: Vec<u64> = set.within(asked.clone()).flatten().collect();
            let outside: Vec<u64> = set.outside(asked.clone()).flatten().collect();
            prop_assert_eq!(&inside, &expected.iter().copied().filter(|number| asked.contains(number)).collect::<Vec<_>>());
            prop_assert_eq!(outside, asked.clone().filter(|number| !expected.contains(number)).collect::<Vec<_>>());
            prop_assert_eq!(set.first_within(asked), inside.first().copied());

            let minus = RangeSet::union_of(other);
            let left = set.without(&minus);
            let kept: Vec<u64> = expected.iter().copied().filter(|number| !numbers(&minus).contains(number)).collect();
            prop_assert_eq!(numbers(&left), kept);
        }
    }

    #[test]
    fn splinters_give_way_where_there_are_too_many() {
        let mut set = RangeSet::default();
        for index in 0..3 * u64::try_from(MOST).expect("small") {
            let length = if index % 4 == 0 { 100 } else { 1 };
            set.push(index * 200..index * 200 + length);
        }
        assert!(set.ranges.len() <= MOST);
        assert!(set.total() >= 3 * u64::try_from(MOST).expect("small") / 4 * 100);
        assert!(set.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
    }
}
