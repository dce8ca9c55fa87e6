//! The columns of the table, and its order.

use std::cmp::Ordering;
use std::fmt::Write as _;

use clap::ValueEnum;

use super::super::tail::visible;
use super::super::words;
use super::seen::Consumer;

/// What the table is sorted by; the first is what needs somebody the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    /// The age of the oldest unsettled message, longest first.
    Lag,
    /// Messages not yet settled, most first.
    Depth,
    /// The name.
    Name,
    /// Health, worst first.
    Health,
    /// Messages a second in, most first.
    In,
    /// Messages a second out, most first.
    Out,
}

impl Sort {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Sort::Lag => "lag",
            Sort::Depth => "depth",
            Sort::Name => "name",
            Sort::Health => "health",
            Sort::In => "in",
            Sort::Out => "out",
        }
    }

    fn compare(self, a: &Consumer, b: &Consumer) -> Ordering {
        let first = match self {
            Sort::Name => Ordering::Equal,
            Sort::Lag => b.lag_seconds.total_cmp(&a.lag_seconds),
            Sort::Depth => b.queue_messages.cmp(&a.queue_messages),
            Sort::Health => (b.badness().cmp(&a.badness()))
                .then_with(|| b.lag_seconds.total_cmp(&a.lag_seconds)),
            Sort::In => b.rates.received.total_cmp(&a.rates.received),
            Sort::Out => b.rates.settled.total_cmp(&a.rates.settled),
        };
        first.then_with(|| a.name.cmp(&b.name))
    }
}

/// Those that match, in order.
pub(super) fn arranged<'c>(
    consumers: &'c [Consumer],
    sort: Sort,
    reverse: bool,
    filter: &str,
) -> Vec<&'c Consumer> {
    let mut shown: Vec<&Consumer> = consumers.iter().filter(|c| c.matches(filter)).collect();
    shown.sort_by(|a, b| {
        let order = sort.compare(a, b);
        if reverse { order.reverse() } else { order }
    });
    shown
}

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Name,
    Health,
    State,
    Depth,
    Behind,
    Lag,
    In,
    Out,
    Failed,
    Dead,
    Forecast,
}

impl Column {
    pub(super) const ALL: [Column; 11] = [
        Column::Name,
        Column::Health,
        Column::State,
        Column::Depth,
        Column::Behind,
        Column::Lag,
        Column::In,
        Column::Out,
        Column::Failed,
        Column::Dead,
        Column::Forecast,
    ];

    /// Those that a narrow screen goes without, the first that comes back first.
    pub(super) const OPTIONAL: [Column; 4] =
        [Column::State, Column::Dead, Column::Failed, Column::Behind];

    pub(super) fn title(self) -> &'static str {
        match self {
            Column::Name => "NAME",
            Column::Health => "HEALTH",
            Column::State => "STATE",
            Column::Depth => "DEPTH",
            Column::Behind => "BEHIND",
            Column::Lag => "LAG",
            Column::In => "IN/S",
            Column::Out => "OUT/S",
            Column::Failed => "FAILED",
            Column::Dead => "DEAD",
            Column::Forecast => "FORECAST",
        }
    }

    /// Whether it is one of numbers.
    pub(super) fn is_right(self) -> bool {
        !matches!(
            self,
            Column::Name | Column::Health | Column::State | Column::Forecast
        )
    }

    pub(super) fn sort(self) -> Option<Sort> {
        Some(match self {
            Column::Name => Sort::Name,
            Column::Health => Sort::Health,
            Column::Depth => Sort::Depth,
            Column::Lag => Sort::Lag,
            Column::In => Sort::In,
            Column::Out => Sort::Out,
            _ => return None,
        })
    }

    /// What it says of a consumer.
    pub(super) fn cell(self, consumer: &Consumer) -> String {
        match self {
            Column::Name => consumer.name.chars().flat_map(visible).collect(),
            Column::Health => spaced(&consumer.health),
            Column::State => spaced(&consumer.state),
            Column::Depth => count(consumer.queue_messages),
            Column::Behind => count(consumer.behind_messages),
            Column::Lag => words(consumer.lag_seconds),
            Column::In => rate(consumer.rates.received),
            Column::Out => rate(consumer.rates.settled),
            Column::Failed => count(consumer.failed),
            Column::Dead => count(consumer.dead_letters),
            Column::Forecast => consumer.drain.to_string(),
        }
    }

    /// As wide as its title and these cells.
    pub(super) fn width(self, consumers: &[&Consumer]) -> usize {
        let cells = consumers.iter().map(|c| self.cell(c).chars().count());
        cells.max().unwrap_or(0).max(self.title().len())
    }
}

/// A word of the hub's, for people.
fn spaced(word: &str) -> String {
    word.replace('_', " ").chars().flat_map(visible).collect()
}

/// A number in five places, as long as it is one of this world.
pub(super) fn count(n: u64) -> String {
    let f = n as f64;
    match n {
        0..100_000 => n.to_string(),
        100_000..1_000_000 => format!("{:.0}k", (f / 1e3).floor()),
        1_000_000..100_000_000 => format!("{:.1}M", (f / 1e5).floor() / 10.0),
        100_000_000..1_000_000_000 => format!("{:.0}M", (f / 1e6).floor()),
        _ => format!("{:.1}G", (f / 1e8).floor() / 10.0),
    }
}

/// A rate in messages a second.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        r if r >= 9.95 => count(r.round() as u64),
        r if r >= 0.05 => format!("{r:.1}"),
        r if r > 0.0 => "<0.1".into(),
        _ => "0".into(),
    }
}

/// The whole table, aligned, for a pipe.
pub(super) fn plain(consumers: &[&Consumer]) -> String {
    let mut out = String::new();
    let widths = Column::ALL.map(|column| column.width(consumers));
    let mut line = |cell: &dyn Fn(Column) -> String| {
        let mut text = String::new();
        for (column, width) in Column::ALL.into_iter().zip(widths) {
            let cell = cell(column);
            let _ = match column.is_right() {
                true => write!(text, "{cell:>width$}  "),
                false => write!(text, "{cell:width$}  "),
            };
        }
        let _ = writeln!(out, "{}", text.trim_end());
    };
    line(&|column| column.title().to_owned());
    for consumer in consumers {
        line(&|column| column.cell(consumer));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::consumer;
    use super::*;

    #[test]
    fn numbers_stay_short_and_do_not_round_up() {
        for (n, text) in [
            (0, "0"),
            (99_999, "99999"),
            (100_000, "100k"),
            (999_999, "999k"),
            (1_000_000, "1.0M"),
            (99_999_999, "99.9M"),
            (100_000_000, "100M"),
            (12_345_678_901, "12.3G"),
        ] {
            assert_eq!(count(n), text);
            assert!(text.len() <= 5);
        }
        for (per_second, text) in [
            (0.0, "0"),
            (0.01, "<0.1"),
            (0.5, "0.5"),
            (9.96, "10"),
            (120.4, "120"),
        ] {
            assert_eq!(rate(per_second), text);
        }
    }

    #[test]
    fn the_order_is_that_of_the_need_and_the_filter_finds_words() {
        let mut all = [consumer("a"), consumer("b"), consumer("c")];
        all[1].lag_seconds = 9.0;
        all[2].health = "halted".into();
        all[0].rates.received = 1.0;
        let names = |sort, reverse, filter: &str| -> String {
            let shown = arranged(&all, sort, reverse, filter);
            shown.iter().map(|c| &*c.name).collect()
        };
        assert_eq!(names(Sort::Lag, false, ""), "bac");
        assert_eq!(names(Sort::Name, true, ""), "cba");
        assert_eq!(names(Sort::Health, false, ""), "cba");
        assert_eq!(names(Sort::In, false, ""), "abc");
        assert_eq!(names(Sort::Name, false, "HALT"), "c");
        assert_eq!(names(Sort::Name, false, "nothing"), "");
    }

    #[test]
    fn a_table_for_a_pipe_is_aligned() {
        let mut all = [consumer("archive"), consumer("a-rather-long-name")];
        all[0].queue_messages = 123_456;
        let shown: Vec<&Consumer> = all.iter().collect();
        let text = plain(&shown);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let at = |line: &str, word: &str| line.find(word).unwrap();
        assert_eq!(at(lines[0], "DEPTH") + 5, at(lines[1], "123k") + 4);
        assert_eq!(at(lines[0], "FORECAST"), at(lines[2], "empty"));
        assert!(lines.iter().all(|line| *line == line.trim_end()));
    }
}
