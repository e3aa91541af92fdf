//! Cutting of an image into parts, decided from lengths alone: which bytes are sent, and which the store
//! copies from an older image, the base.
//!
//! Stores demand at least 5 MiB in every part but the last, and take 10,000 parts. So a stretch of the base
//! that is too short for a part of its own becomes a *hole* in a part that is sent: its bytes are fetched
//! from the base when the part goes out. An image without a base is cut into equal parts, as some stores
//! insist.

use std::collections::VecDeque;
use std::ops::Range;

/// Limits of a destination, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes in a part that is sent.
    pub part: u64,
    /// Least bytes in every part but the last.
    pub least: u64,
    /// Bytes that one request copies, give or take a segment.
    pub copy: u64,
    /// Most parts.
    pub most: u64,
}

/// Instruction to the part writer. All instructions together produce the image from front to back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The open part gets this many of the bytes that were announced.
    Append(u64),
    /// The open part gets this many zeros.
    Zeros(u64),
    /// The open part gets this range of the base.
    Hole(Range<u64>),
    /// The open part ends.
    End,
    /// The next part is a copy of this range of the base. No part is open.
    Copy(Range<u64>),
}

/// Segment of the base that the image takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reusable {
    /// Zeros that the image has in front of the segment.
    pub gap: u64,
    /// The segment's bytes in the base.
    pub range: Range<u64>,
    /// Zeros that the base has in front of the segment.
    pub before: u64,
    /// Zeros that the base has behind the segment.
    pub behind: u64,
}

/// Stretch of the base that the image takes over, and that is in no part yet.
#[derive(Debug)]
struct Run {
    start: u64,
    end: u64,
    /// Ends of its segments, the last one included. A stretch is cut only there, so that each piece has the
    /// checksum of its segments.
    ends: VecDeque<u64>,
    /// Zeros that the base has behind the last segment.
    behind: u64,
}

impl Run {
    fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Returns the first place for a cut with at least `len` bytes in front, if `least` bytes remain behind.
    fn cut(&self, len: u64, least: u64) -> Option<u64> {
        let place = self.ends.iter().copied().find(|end| end - self.start >= len)?;
        (self.end - place >= least).then_some(place)
    }

    fn take(&mut self, to: u64) -> Range<u64> {
        let taken = self.start..to;
        self.start = to;
        while self.ends.front().is_some_and(|&end| end <= to) {
            self.ends.pop_front();
        }
        taken
    }
}

/// Planner of one image's parts.
#[derive(Debug)]
pub struct Planner {
    limits: Limits,
    /// Bytes in the open part.
    filled: u64,
    /// Number of parts that have ended.
    ended: u64,
    /// True once a part is a copy.
    copies: bool,
    run: Option<Run>,
    /// Most bytes that may follow those announced so far.
    rest: u64,
    actions: VecDeque<Action>,
}

impl Planner {
    /// Creates a planner whose first part begins with `head` bytes that are known last.
    pub fn new(limits: Limits, head: u64) -> Self {
        let actions = VecDeque::new();
        Self { limits, filled: head, ended: 0, copies: false, run: None, rest: u64::MAX, actions }
    }

    /// Sets the most bytes of the image that may follow, those of the next call included unless they are
    /// reused.
    pub fn expect_at_most(&mut self, rest: u64) {
        self.rest = rest;
    }

    /// Returns the next instruction, until all that follow from the calls so far are returned.
    pub fn next(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Plans `len` bytes that are new.
    pub fn bytes(&mut self, len: u64) {
        self.settle();
        self.put(len, Action::Append);
    }

    /// Plans a segment of the base, with the gap in front of it.
    pub fn reuse(&mut self, segment: Reusable) {
        let Reusable { gap, range, before, behind } = segment;
        let continued = self.run.as_mut().filter(|run| {
            run.end.checked_add(before) == Some(range.start) && run.behind == before && gap == before
        });
        if let Some(run) = continued {
            run.end = range.end;
            run.ends.push_back(range.end);
            run.behind = behind;
        } else {
            // The zeros around segments in the base make up the gap, so that none are sent.
            let front = gap.min(before);
            let back = self.run.as_ref().map_or(0, |run| run.behind.min(gap - front));
            let covered = front + back == gap;
            if let Some(run) = self.run.as_mut().filter(|_| covered) {
                run.end += back;
                if let Some(last) = run.ends.back_mut() {
                    *last = run.end;
                }
            }
            self.settle();
            if !covered {
                self.put(gap, Action::Zeros);
            }
            let start = range.start - if covered { front } else { 0 };
            self.run = Some(Run { start, end: range.end, ends: VecDeque::from([range.end]), behind });
        }
        self.drain();
    }

    /// Plans the end of the image. The last part may be short.
    pub fn finish(&mut self) {
        self.settle();
        self.end();
    }

    /// Puts `len` bytes into parts, each of which ends when it is full.
    fn put(&mut self, mut len: u64, action: impl Fn(u64) -> Action) {
        while len > 0 {
            let count = len.min(self.limits.part - self.filled);
            self.actions.push_back(action(count));
            self.filled += count;
            len -= count;
            if self.filled == self.limits.part {
                self.end();
            }
        }
    }

    fn put_hole(&mut self, mut range: Range<u64>) {
        while !range.is_empty() {
            let end = range.end.min(range.start + self.limits.part - self.filled);
            self.actions.push_back(Action::Hole(range.start..end));
            self.filled += end - range.start;
            range.start = end;
            if self.filled == self.limits.part {
                self.end();
            }
        }
    }

    fn end(&mut self) {
        if self.filled > 0 {
            self.actions.push_back(Action::End);
            self.filled = 0;
            self.ended += 1;
        }
    }

    fn copy(&mut self, range: Range<u64>) {
        self.actions.push_back(Action::Copy(range));
        self.ended += 1;
        self.copies = true;
    }

    /// True if a part may end before it is full: the worst that can follow still fits into the numbers left.
    /// Two are for the open part and for the one that the worst ends with.
    fn may_end_short(&self) -> bool {
        let left = self.rest.saturating_add(self.run.as_ref().map_or(0, Run::len));
        self.ended.saturating_add(2).saturating_add(left.div_ceil(self.limits.part)) <= self.limits.most
    }

    /// Fills the open part from the run until a copied part may follow it. Returns false if the run is too
    /// short for both.
    fn top_up(&mut self, run: &mut Run) -> bool {
        while self.filled > 0 && self.filled < self.limits.least {
            let Some(place) = run.cut(self.limits.least - self.filled, self.limits.least) else {
                return false;
            };
            let range = run.take(place);
            self.put_hole(range);
        }
        true
    }

    /// Cuts copies from a run that is long enough. They go out while the disk is still read.
    fn drain(&mut self) {
        let least = self.limits.least;
        while let Some(len) = self.run.as_ref().map(Run::len) {
            // The first copy shows if the store copies at all, so it comes early.
            let want = if self.copies { self.limits.copy } else { least };
            if len < want + 3 * least || !self.may_end_short() {
                return;
            }
            let Some(mut run) = self.run.take() else { return };
            let ready = self.top_up(&mut run);
            let copied = if ready {
                self.end();
                run.cut(want, least).map(|place| run.take(place))
            } else {
                None
            };
            self.run = Some(run);
            match copied {
                Some(range) => self.copy(range),
                None => return,
            }
        }
    }

    /// Ends the run: what is left of it is copied if it makes a part, and is a hole otherwise.
    fn settle(&mut self) {
        self.drain();
        let may_end_short = self.may_end_short();
        let Some(mut run) = self.run.take() else { return };
        if run.len() >= self.limits.least && may_end_short && self.top_up(&mut run) {
            self.end();
            self.copy(run.start..run.end);
        } else {
            self.put_hole(run.start..run.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use snapferry_base::units::{to_u64, to_usize};

    use super::*;

    const CLUSTER: u64 = 64;
    /// Clusters in a segment.
    const SEGMENT: u64 = 16;

    /// Segment of a disk: its clusters that are stored as they are, and the length of the others' bodies.
    /// `version` stands for its content.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Content {
        raw: u64,
        packed: u64,
        version: u8,
    }

    impl Content {
        fn len(&self) -> u64 {
            self.raw * CLUSTER + self.packed
        }

        fn bytes(&self, number: usize) -> Vec<u8> {
            let mut state = to_u64(number) << 8 | u64::from(self.version);
            let mut next = || {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                // Never zero, so that a zero in the image is one of a gap.
                state.to_be_bytes()[1] | 1
            };
            (0..self.len()).map(|_| next()).collect()
        }
    }

    /// Image with the place of each segment.
    struct Image {
        bytes: Vec<u8>,
        places: Vec<Option<Range<u64>>>,
    }

    fn gap_before(content: &Content, end: u64) -> u64 {
        if content.raw > 0 { end.next_multiple_of(CLUSTER) - end } else { 0 }
    }

    fn full(disk: &[Content], head: u64, tables: u64) -> Image {
        let mut bytes = vec![1; to_usize(head)];
        let mut places = Vec::new();
        for (number, content) in disk.iter().enumerate() {
            if content.len() == 0 {
                places.push(None);
                continue;
            }
            let gap = gap_before(content, to_u64(bytes.len()));
            bytes.resize(bytes.len() + to_usize(gap), 0);
            let start = to_u64(bytes.len());
            bytes.extend(content.bytes(number));
            places.push(Some(start..to_u64(bytes.len())));
        }
        bytes.resize(bytes.len().next_multiple_of(to_usize(CLUSTER)), 0);
        bytes.resize(bytes.len() + to_usize(tables), 2);
        Image { bytes, places }
    }

    /// Parts of the image as the planner's instructions make them: kind and bytes.
    #[derive(Default)]
    struct Made {
        parts: Vec<(bool, Vec<u8>)>,
        open: Vec<u8>,
    }

    impl Made {
        fn follow(&mut self, planner: &mut Planner, mut announced: &[u8], base: &[u8]) {
            let of_base = |range: Range<u64>| base[to_usize(range.start)..to_usize(range.end)].to_vec();
            while let Some(action) = planner.next() {
                match action {
                    Action::Append(len) => {
                        let (now, rest) = announced.split_at(to_usize(len));
                        self.open.extend(now);
                        announced = rest;
                    }
                    Action::Zeros(len) => self.open.resize(self.open.len() + to_usize(len), 0),
                    Action::Hole(range) => self.open.extend(of_base(range)),
                    Action::End => self.parts.push((false, std::mem::take(&mut self.open))),
                    Action::Copy(range) => {
                        assert!(self.open.is_empty(), "a part is open");
                        self.parts.push((true, of_base(range)));
                    }
                }
            }
            assert!(announced.is_empty(), "all bytes are placed");
        }
    }

    /// Makes the image of `disk`, and takes from `base` what is equal.
    fn incremental(disk: &[Content], base: &[Content], limits: Limits, head: u64, tables: u64) -> Made {
        let old = full(base, head, tables);
        let gap_in_base = |number: usize| {
            let place = old.places[number].as_ref().expect("it is stored");
            let end = old.places[..number].iter().flatten().last().map_or(head, |before| before.end);
            place.start - end
        };
        let mut planner = Planner::new(limits, head);
        let mut made = Made { open: vec![1; to_usize(head)], ..Made::default() };
        let mut end = head;
        for (number, content) in disk.iter().enumerate() {
            let rest = to_u64(disk.len() - number - 1) * SEGMENT * CLUSTER + CLUSTER + tables;
            if content.len() == 0 {
                continue;
            }
            let gap = gap_before(content, end);
            end += gap + content.len();
            let reused = base.get(number).filter(|old| *old == content).and(old.places.get(number).cloned());
            if let Some(Some(range)) = reused {
                planner.expect_at_most(rest);
                let next = (number + 1..base.len()).find(|&next| old.places[next].is_some());
                let behind = next.map_or(0, gap_in_base);
                planner.reuse(Reusable { gap, range, before: gap_in_base(number), behind });
                made.follow(&mut planner, &[], &old.bytes);
            } else {
                planner.expect_at_most(rest + gap + content.len());
                let bytes = [vec![0; to_usize(gap)], content.bytes(number)].concat();
                planner.bytes(to_u64(bytes.len()));
                made.follow(&mut planner, &bytes, &old.bytes);
            }
        }
        let pad = end.next_multiple_of(CLUSTER) - end;
        planner.expect_at_most(pad + tables);
        planner.bytes(pad);
        made.follow(&mut planner, &vec![0; to_usize(pad)], &old.bytes);
        planner.bytes(tables);
        made.follow(&mut planner, &vec![2; to_usize(tables)], &old.bytes);
        planner.finish();
        made.follow(&mut planner, &[], &old.bytes);
        assert!(made.open.is_empty(), "the last part has ended");
        made
    }

    fn content(raws: u32) -> impl Strategy<Value = Content> {
        let of = move |raw: u64, packed: u64, version: u8| {
            let raw = raw.min(SEGMENT);
            Content { raw, packed: packed.min((SEGMENT - raw) * (CLUSTER - 1)), version }
        };
        prop_oneof![
            1 => Just(Content { raw: 0, packed: 0, version: 0 }),
            6 => (0..SEGMENT * CLUSTER, any::<u8>()).prop_map(move |(packed, version)| of(0, packed, version)),
            raws => (1..=SEGMENT, 0..SEGMENT * CLUSTER, any::<u8>())
                .prop_map(move |(raw, packed, version)| of(raw, packed, version)),
        ]
    }

    /// Old and new content of a disk's segments; the new disk may be longer or shorter.
    fn disks() -> impl Strategy<Value = (Vec<Content>, Vec<Content>)> {
        let rates = prop_oneof![Just(0.001), Just(0.02), Just(0.1), Just(0.3), Just(0.7), Just(0.99)];
        (1_u32..4, rates, 1_usize..60).prop_flat_map(|(raws, rate, segments)| {
            let old = proptest::collection::vec(content(raws), segments);
            let change = proptest::option::weighted(rate, content(raws));
            let changes = proptest::collection::vec(change, segments);
            let more = proptest::collection::vec(content(raws), 0..10);
            (old, changes, more, 0_usize..4).prop_map(|(old, changes, more, fewer)| {
                let changed = changes.into_iter().zip(&old).map(|(new, old)| new.unwrap_or(old.clone()));
                let mut new: Vec<Content> = changed.collect();
                if fewer == 0 {
                    new.truncate(old.len() / 2);
                }
                new.extend(more);
                (old, new)
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        #[test]
        fn any_mix_of_old_and_new_makes_the_bytes_of_a_full_run_in_parts_that_stores_take(
            (base, disk) in disks(),
            head in prop_oneof![Just(64_u64), Just(192), Just(640)],
            part in prop_oneof![Just(1400_u64), Just(2800), Just(4000)],
            copy in prop_oneof![Just(1500_u64), Just(3000)],
            most in prop_oneof![4 => Just(10_000_u64), 1 => 8_u64..40],
            tables in 1_u64..3000,
        ) {
            let least = 700;
            let limits = Limits { part, least, copy, most };
            let expected = full(&disk, head, tables).bytes;
            let made = incremental(&disk, &base, limits, head, tables);
            let bytes: Vec<u8> = made.parts.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
            prop_assert!(bytes == expected, "{} bytes instead of {}", bytes.len(), expected.len());
            let (_, before_last) = made.parts.split_last().expect("a part");
            for (_, bytes) in before_last {
                prop_assert!(to_u64(bytes.len()) >= least, "a part of {} bytes", bytes.len());
            }
            for (copied, bytes) in &made.parts {
                let most = if *copied { copy + 3 * least + SEGMENT * CLUSTER + CLUSTER } else { part };
                prop_assert!(to_u64(bytes.len()) <= most, "{copied} {} bytes", bytes.len());
            }
            // A full run's parts in the worst case: a disk of which nothing compresses.
            let worst = head + (to_u64(disk.len()) * SEGMENT + 1) * CLUSTER + tables;
            let fits = to_u64(made.parts.len()) <= most.max(worst.div_ceil(part) + 2);
            prop_assert!(fits, "{} parts", made.parts.len());
        }

        #[test]
        fn without_a_base_all_parts_but_the_last_are_equal(
            (_, disk) in disks(),
            tables in 1_u64..3000,
        ) {
            let limits = Limits { part: 1400, least: 700, copy: 1500, most: 10_000 };
            let made = incremental(&disk, &[], limits, 192, tables);
            let (_, before_last) = made.parts.split_last().expect("a part");
            prop_assert!(before_last.iter().all(|(copied, bytes)| !copied && bytes.len() == 1400));
        }
    }

    #[test]
    fn an_unchanged_disk_is_copied_in_large_pieces_and_almost_nothing_is_sent() {
        const MIB: u64 = 1 << 20;
        let limits = Limits { part: 32 * MIB, least: 5 * MIB, copy: 128 * MIB, most: 10_000 };
        let mut planner = Planner::new(limits, 196_608);
        let (mut at, mut sent, mut copies) = (196_608, 196_608, 0);
        let mut count = |planner: &mut Planner| {
            while let Some(action) = planner.next() {
                match action {
                    Action::Append(len) | Action::Zeros(len) => sent += len,
                    Action::Hole(range) => sent += range.end - range.start,
                    Action::Copy(_) => copies += 1,
                    Action::End => {}
                }
            }
            (sent, copies)
        };
        for number in 0..340_u64 {
            planner.expect_at_most((340 - number) * 16 * MIB);
            let len = 6 * MIB + number;
            planner.reuse(Reusable { gap: 0, range: at..at + len, before: 0, behind: 0 });
            at += len;
            count(&mut planner);
        }
        planner.bytes(MIB);
        planner.finish();
        let (sent, copies) = count(&mut planner);
        assert!(sent < 10 * MIB, "{sent} bytes are sent");
        assert!((16..=20).contains(&copies), "{copies} copies");
    }
}
