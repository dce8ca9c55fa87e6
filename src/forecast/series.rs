//! A count over time, remembered finely for the last half minute and more coarsely further back,
//! and how fast and how evenly it grows.
//!
//! Promises:
//!
//! 1. Memory is bounded: five levels of 33 marks, whatever is added.
//! 2. A change that is new shortens the window the mean is taken over; one that has come and gone
//!    several times is part of the pattern, and makes the spread wide instead.
//!
//! The second is why the spread is measured on blocks of several lengths: of a consumer that is
//! stuck for two minutes and fast for one, seconds tell nothing and quarters of an hour all.

use std::collections::VecDeque;

/// Blocks of so many seconds are kept.
const SPANS: [f64; 5] = [1.0, 4.0, 16.0, 64.0, 256.0];
/// So many of each length.
const BLOCKS: usize = 32;
/// The windows that a mean may be taken over: so many of the last blocks of a level.
const WINDOWS: [(usize, usize); 10] = [
    (0, 16),
    (0, 32),
    (1, 16),
    (1, 32),
    (2, 16),
    (2, 32),
    (3, 16),
    (3, 32),
    (4, 16),
    (4, 32),
];
/// The shortest window, used when no longer one fits.
const SHORTEST: usize = 8;
/// Fewer seconds than this tell nothing.
const SECONDS_MIN: f64 = 5.0;
/// A block may end this much early: samples do not come by the clock.
const JITTER: f64 = 0.1;

#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    at: f64,
    total: f64,
}

/// A count over time.
#[derive(Clone, Debug)]
pub(super) struct Series {
    now: Mark,
    levels: [VecDeque<Mark>; SPANS.len()],
}

/// How fast a count grows, and how evenly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// The mean a second.
    pub(super) mean: f64,
    /// Of so many seconds.
    pub(super) span: f64,
    /// Variances of the count over blocks of so many seconds, shortest first.
    knots: [(f64, f64); 2 * SPANS.len() + 1],
    len: usize,
}

/// A pace that itself changes, gradually.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trend {
    /// The pace now.
    pub(super) now: f64,
    /// How much it changes a second.
    pub(super) change: f64,
    /// Seen over so many seconds, and good for as many to come.
    pub(super) span: f64,
}

/// Blocks of one length: the variances of the counts of one, two and four of them.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    span: f64,
    variances: [f64; 3],
    /// Their pattern repeats, or there is none: what they were, the next will be.
    even: bool,
}

impl Series {
    pub(super) fn new() -> Self {
        let level = || {
            let mut marks = VecDeque::with_capacity(BLOCKS + 1);
            marks.push_back(Mark::default());
            marks
        };
        Series {
            now: Mark::default(),
            levels: std::array::from_fn(|_| level()),
        }
    }

    /// Adds what was counted in so many seconds.
    pub(super) fn add(&mut self, seconds: f64, count: f64) {
        self.now.at += seconds;
        self.now.total += count;
        for (marks, span) in self.levels.iter_mut().zip(SPANS) {
            let last = marks.back().copied().unwrap_or_default();
            if self.now.at - last.at >= span - JITTER {
                if marks.len() > BLOCKS {
                    marks.pop_front();
                }
                marks.push_back(self.now);
            }
        }
    }

    /// What it takes on the heap.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let marks: usize = self.levels.iter().map(VecDeque::capacity).sum();
        marks * size_of::<Mark>()
    }

    /// The mean of the last so many blocks of a level and of what came since; all there is if they
    /// are fewer.
    fn recent(&self, level: usize, blocks: usize) -> Option<(f64, f64)> {
        let marks = &self.levels[level];
        let from = marks.get(marks.len().saturating_sub(blocks + 1))?;
        let seconds = self.now.at - from.at;
        (seconds > 0.0).then(|| ((self.now.total - from.total) / seconds, seconds))
    }

    fn blocks(&self, level: usize, blocks: usize) -> Option<Blocks> {
        let marks = &self.levels[level];
        let first = marks.len().checked_sub(blocks + 1)?;
        let (from, to) = (marks.get(first)?, marks.back()?);
        let mean = (to.total - from.total) / (to.at - from.at);
        let span = (to.at - from.at) / blocks as f64;
        let excess = |length: usize| {
            (first..marks.len() - length).map(move |at| {
                let (from, to) = (marks[at], marks[at + length]);
                to.total - from.total - mean * (to.at - from.at)
            })
        };
        let variances = [1, 2, 4].map(|length| {
            let sum: f64 = excess(length).map(|excess| excess * excess).sum();
            sum / (blocks - length) as f64
        });
        let deviation = variances[0].sqrt();
        let poisson = mean.abs() * span;
        let even = variances[0] <= 2.0 * poisson.max(0.001 * poisson * poisson) || {
            // How often it went from well above its mean to well below, or back. Noise does so all
            // the time, a burst twice, a step or a drift once.
            let mut side = 0;
            let mut crossings = 0;
            for excess in excess(1).filter(|excess| excess.abs() >= 0.25 * deviation) {
                let now = if excess > 0.0 { 1 } else { -1 };
                crossings += usize::from(now == -side);
                side = now;
            }
            crossings >= if blocks >= BLOCKS { 4 } else { 3 }
        };
        Some(Blocks {
            span,
            variances,
            even,
        })
    }

    /// The pace of the longest window that tells what comes next; none before a few seconds.
    pub(super) fn pace(&self) -> Option<Pace> {
        let shortest = self.levels[0].len().saturating_sub(1).min(SHORTEST);
        let (mean, span) = self
            .recent(0, shortest)
            .filter(|_| self.now.at >= SECONDS_MIN)?;
        let block = (shortest > 4).then(|| self.blocks(0, shortest)).flatten();
        let variance = block.map_or(0.0, |block| block.variances[0]);
        let mut best = Pace::of(mean, span, &[(1.0, variance.max(mean.abs()))]);

        let mut lower: Option<Blocks> = None;
        let mut knots = [(0.0, 0.0); 2 * SPANS.len() + 1];
        let mut len = 0;
        for (index, (level, count)) in WINDOWS.into_iter().enumerate() {
            let Some(blocks) = self.blocks(level, count) else {
                break;
            };
            // A finer level tells of shorter times, if it has seen its pattern repeat.
            if count < BLOCKS
                && let Some(lower) = lower.take().filter(|blocks| blocks.even)
            {
                knots[len] = (lower.span, lower.variances[0]);
                knots[len + 1] = (2.0 * lower.span, lower.variances[1]);
                len += 2;
            }
            lower = Some(blocks);
            if !blocks.even {
                continue;
            }
            let Some((mean, span)) = self.recent(level, count) else {
                continue;
            };
            let mut all = knots;
            for (at, variance) in blocks.variances.into_iter().enumerate() {
                all[len + at] = ((1 << at) as f64 * blocks.span, variance);
            }
            let pace = Pace::of(mean, span, &all[..len + blocks.variances.len()]);
            // The latest must not contradict it, however short a time that is.
            let shorter = std::iter::once((0, SHORTEST)).chain(WINDOWS[..index].iter().copied());
            let fits = |(level, count)| {
                self.recent(level, count).is_none_or(|(mean, seconds)| {
                    let off = (mean - pace.mean).abs() * seconds;
                    off <= 3.0 * pace.variance(seconds).sqrt() + 1.0
                })
            };
            if shorter.into_iter().all(fits) {
                best = pace;
            }
        }
        Some(best)
    }

    /// A gradual change of the pace, in the longest window that shows one; none if the latest pace
    /// is not what it leads to.
    pub(super) fn trend(&self, pace: &Pace) -> Option<Trend> {
        let windows = WINDOWS[5..].iter().rev();
        windows.copied().find_map(|(level, count)| {
            let marks = &self.levels[level];
            let first = marks.len().checked_sub(count + 1)?;
            let quarter = count / 4;
            let mark = |at: usize| marks[first + at];
            let span = mark(count).at - mark(0).at;
            let rate = |from: Mark, to: Mark| (to.total - from.total) / (to.at - from.at);
            let rates: [f64; 4] =
                std::array::from_fn(|at| rate(mark(at * quarter), mark((at + 1) * quarter)));
            let steps = [1, 2, 3].map(|at| rates[at] - rates[at - 1]);
            let total = rates[3] - rates[0];
            // Noise by the differences of neighbours, which a gradual change leaves alone.
            let noise: f64 = (1..count)
                .map(|at| rate(mark(at), mark(at + 1)) - rate(mark(at - 1), mark(at)))
                .map(|step| step * step / 2.0)
                .sum::<f64>()
                / (count - 1) as f64;
            let error = (2.0 * noise / quarter as f64).sqrt();
            // A step is no trend: all of it in one place.
            let gradual = steps
                .iter()
                .all(|step| (0.1..0.65).contains(&(step / total)));
            let change = total / (0.75 * span);
            let late = self.now.at - mark(count).at;
            let now = rates[3] + change * (span / 8.0 + late);
            let off = (now - change * pace.span / 2.0 - pace.mean).abs();
            let fits = off <= 3.0 * pace.mean_variance().sqrt() + 0.25 * total.abs();
            (gradual && fits && total.abs() > 3.0 * error).then_some(Trend { now, change, span })
        })
    }
}

impl Pace {
    fn of(mean: f64, span: f64, knots: &[(f64, f64)]) -> Self {
        let mut all = [(0.0, 0.0); 2 * SPANS.len() + 1];
        all[..knots.len()].copy_from_slice(knots);
        Pace {
            mean,
            span,
            knots: all,
            len: knots.len(),
        }
    }

    /// The variance of what is counted in so many seconds.
    fn variance(&self, seconds: f64) -> f64 {
        let mut before = (0.0, 0.0);
        let mut variance = 0.0;
        for &(span, at_span) in &self.knots[..self.len] {
            if seconds <= span {
                let part = (seconds - before.0) / (span - before.0);
                variance = before.1 + part * (at_span - before.1);
                before.0 = f64::INFINITY;
                break;
            }
            before = (span, at_span);
        }
        if before.0.is_finite() && before.0 > 0.0 {
            variance = before.1 * seconds / before.0;
        }
        variance.max(0.25 * self.mean.abs() * seconds)
    }

    /// The variance of the mean itself.
    pub(super) fn mean_variance(&self) -> f64 {
        self.variance(self.span) / (self.span * self.span)
    }

    /// The variance of what will be counted in the next so many seconds, when only the past is
    /// known.
    pub(super) fn spread(&self, seconds: f64) -> f64 {
        self.variance(seconds) + seconds * seconds * self.mean_variance()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(seconds: usize, count: impl Fn(usize) -> f64) -> Series {
        let mut series = Series::new();
        for second in 0..seconds {
            series.add(1.0, count(second));
        }
        series
    }

    #[test]
    fn memory_is_bounded_whatever_is_added() {
        let series = series(100_000, |_| 1.0);
        assert!(series.levels.iter().all(|marks| marks.len() == BLOCKS + 1));
        assert!(series.levels.iter().all(|marks| marks.capacity() < 64));
    }

    #[test]
    fn a_new_pace_is_believed_at_once_and_one_that_comes_and_goes_is_not() {
        let stepped = series(2000, |second| if second < 1980 { 10.0 } else { 50.0 });
        assert_eq!(stepped.pace().unwrap().mean, 50.0);
        let even = series(2000, |_| 10.0).pace().unwrap();
        assert_eq!((even.mean, even.span > 1000.0), (10.0, true));
        let alternating = series(2005, |second| if second % 30 < 20 { 0.0 } else { 60.0 });
        let pace = alternating.pace().unwrap();
        assert!((19.0..21.0).contains(&pace.mean), "{pace:?}");
        assert!(pace.variance(10.0).sqrt() > 150.0, "{pace:?}");
    }

    #[test]
    fn a_trend_is_gradual() {
        let trend = |series: Series| series.trend(&series.pace().unwrap());
        let drift = |second: usize| 10.0 + second as f64 / 100.0;
        let drifted = trend(series(4000, drift)).unwrap();
        assert!((drifted.change - 0.01).abs() < 1e-4, "{drifted:?}");
        assert!((drifted.now - 50.0).abs() < 0.1, "{drifted:?}");
        let step = series(4000, |second| if second < 3000 { 10.0 } else { 50.0 });
        assert!(trend(step).is_none());
        assert!(trend(series(4000, |_| 10.0)).is_none());
        let burst = series(4000, |at| drift(at) + if at > 3960 { 100.0 } else { 0.0 });
        assert!(trend(burst).is_none());
    }
}
