//! Draws what there is to see.

use std::collections::VecDeque;
use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style as Look};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, Wrap};

use super::super::demo::spark;
use super::super::words;
use super::columns::{Column, count, rate};
use super::seen::{Consumer, Journal, Seen, Source, counts};
use super::view::{Front, Turn, View};
use crate::why::Why;

/// A name takes no more than this of the table.
const NAME_MAX: usize = 28;
/// Sentences of a forecast that are longer are rare, and stand in the detail.
const FORECAST: usize = 20;
const FORECAST_MAX: usize = 46;
/// Columns that a drawing of the past needs at least, and takes at most.
const SPARK: usize = 12;
const SPARK_MAX: usize = 60;
/// Between columns there is more room on a screen that is so wide.
const WIDE: usize = 120;
/// What stands in front is no wider, for the eye's sake.
const FRONT_MAX: u16 = 78;
/// No more causes, topics or messages than this in the detail.
const LISTED: usize = 4;

const HELP: &str = "\
Up Down j k      move              Enter  one consumer, and why it is so
PgUp PgDn g G    move far          Esc    back; clear the filter
s                sort by the next: lag, depth, name, health, in, out
r                the other way round
/                filter by name, kind, health or state
p                pause, or resume, after a question
? q              this help; quit

HEALTH    ok; behind: messages wait for more than a few seconds;
          falling behind: ever longer; stalled: none is settled;
          paused by an operator; halted: it said it can't go on
DEPTH     messages not yet settled
BEHIND    those of them that are in the journal only
LAG       the age of the oldest of them
FORECAST  when the queue will be empty";

/// How words look.
pub(super) struct Style {
    colour: bool,
}

impl Style {
    pub(super) fn new(colour: bool) -> Self {
        Style { colour }
    }

    fn health(&self, health: &str) -> Look {
        let bold = Look::new().add_modifier(Modifier::BOLD);
        match (health, self.colour) {
            ("ok", true) => Look::new().fg(Color::Green),
            ("paused", true) => Look::new().fg(Color::Cyan),
            ("behind", true) => Look::new().fg(Color::Yellow),
            ("ok" | "paused", false) => Look::new(),
            ("behind", false) => bold,
            (_, true) => bold.fg(Color::Red),
            (_, false) => bold.add_modifier(Modifier::UNDERLINED),
        }
    }

    /// What is wrong.
    fn alarm(&self) -> Look {
        self.health("stalled")
    }

    fn title(&self) -> Look {
        Look::new().add_modifier(Modifier::BOLD)
    }

    fn bar(&self) -> Look {
        Look::new().add_modifier(Modifier::REVERSED)
    }

    /// What may not be so any more.
    fn old(&self) -> Look {
        match self.colour {
            true => Look::new()
                .fg(Color::DarkGray)
                .remove_modifier(Modifier::BOLD),
            false => Look::new().add_modifier(Modifier::DIM),
        }
    }
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View, style: &Style, now: Instant) {
    let area = frame.area();
    let head = head(view, style);
    let [top, middle, bottom] = Layout::vertical([
        Constraint::Length(head.len() as u16),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Text::from(head), top);
    match (&view.seen, view.detail) {
        (None, _) => frame.render_widget(Paragraph::new(" asking the hub ..."), middle),
        (Some(_), true) => detail(frame, middle, view, style),
        (Some(_), false) => table(frame, middle, view, style),
    }
    if view.away.is_some() {
        frame.buffer_mut().set_style(top, style.old());
        frame.buffer_mut().set_style(middle, style.old());
    }
    if let Some(why) = &view.away {
        let since = match view.heard {
            Some(at) => {
                let ago = now.saturating_duration_since(at).as_secs_f64();
                format!(
                    "This is what it said {} ago; it is asked again.",
                    words(ago)
                )
            }
            None => "It is asked again.".into(),
        };
        let text = Text::from(vec![Line::from(why.clone()), Line::from(since)]);
        popup(frame, area, " no answer ", text, style, Place::Bottom);
    } else if let Some(notice) = view.notice.clone() {
        popup(
            frame,
            area,
            " weir ",
            Text::from(notice),
            style,
            Place::Bottom,
        );
    }
    frame.render_widget(foot(view, style), bottom);
    match &view.front {
        Front::Help => popup(
            frame,
            area,
            " keys and words ",
            HELP.into(),
            style,
            Place::Middle,
        ),
        Front::Confirm(turn) => {
            popup(frame, area, " sure? ", question(turn), style, Place::Middle);
        }
        Front::Nothing | Front::Filter(_) => {}
    }
}

enum Place {
    Middle,
    /// Above the last line.
    Bottom,
}

fn popup(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    text: Text<'_>,
    style: &Style,
    place: Place,
) {
    let width = u16::try_from(text.width()).unwrap_or(FRONT_MAX);
    let width = width.saturating_add(4).min(FRONT_MAX).min(area.width);
    let inner = usize::from(width.saturating_sub(4).max(1));
    let lines = text.lines.iter().map(|line| wrapped(line.width(), inner));
    let height = (lines.sum::<usize>() as u16)
        .saturating_add(2)
        .min(area.height.saturating_sub(1));
    let (x, y) = match place {
        Place::Middle => ((area.width - width) / 2, (area.height - height) / 2),
        Place::Bottom => (0, area.height.saturating_sub(height + 1)),
    };
    let place = Rect::new(area.x + x, area.y + y, width, height);
    let block = Block::bordered().title(title).border_style(style.title());
    let text = Paragraph::new(text)
        .wrap(Wrap { trim: false })
        .block(block.padding(ratatui::widgets::Padding::horizontal(1)));
    frame.render_widget(Clear, place);
    frame.render_widget(text, place);
}

/// Lines that a text takes, about: words are not cut, so it may be one more.
fn wrapped(width: usize, inner: usize) -> usize {
    match width.div_ceil(inner) {
        0 | 1 => 1,
        lines => (width + lines * 6).div_ceil(inner),
    }
}

fn question(turn: &Turn) -> Text<'static> {
    let (what, then) = match turn {
        Turn::Pause(consumer) => (
            format!("Pause {consumer}?"),
            "Nothing is delivered to it until it is resumed, also after a restart. What comes waits \
             in its queue and in the journal.",
        ),
        Turn::Resume(consumer) => (
            format!("Resume {consumer}?"),
            "It is delivered to again, from where it was.",
        ),
    };
    Text::from(vec![
        Line::from(what).style(Look::new().add_modifier(Modifier::BOLD)),
        Line::from(then),
        Line::from(""),
        Line::from("y  yes      any other key  no"),
    ])
}

/// What is told of the hub.
fn head(view: &View, style: &Style) -> Vec<Line<'static>> {
    let Some(seen) = &view.seen else {
        return vec![Line::styled(
            format!("weir top  {}", view.hub),
            style.title(),
        )];
    };
    let uptime = words(seen.uptime_seconds);
    let mut lines = vec![Line::from(vec![
        Span::styled(format!("weir top  {}", seen.hub), style.title()),
        Span::raw(format!("  up {uptime}  {}", view.hub)),
    ])];
    lines.push(sources(&seen.sources, view.source_rate, style));
    lines.push(journal(seen.journal.as_ref(), style));
    lines.push(consumers(view, seen, style));
    lines
}

fn sources(sources: &[Source], rate_now: Option<f64>, style: &Style) -> Line<'static> {
    let endpoints: Vec<_> = sources.iter().flat_map(|s| &s.endpoints).collect();
    let received: u64 = sources.iter().map(|source| source.received).sum();
    let mut line = vec![Span::raw(format!(
        "sources   {}{} received",
        rate_now.map_or(String::new(), |now| format!("{}/s, ", rate(now))),
        count(received)
    ))];
    let mut alarm = |text: String| line.push(Span::styled(text, style.alarm()));
    let gaps: u64 = endpoints.iter().map(|at| at.gaps).sum();
    if gaps > 0 {
        alarm(format!(", {} never came", count(gaps)));
    } else if endpoints.iter().any(|at| at.loss == "possible") {
        alarm(", loss possible".into());
    }
    let refused = sources.iter().flat_map(|source| counts(&source.refused));
    let refused: u64 = refused.map(|(_, n)| n).sum();
    if refused > 0 {
        alarm(format!(", {} refused", count(refused)));
    }
    // libzmq does not tell of inproc; and who binds can't miss anybody in particular.
    let away = (endpoints.iter())
        .filter(|at| at.connections == 0 && !at.bound && !at.endpoint.starts_with("inproc:"));
    let away: Vec<&str> = away.map(|at| &*at.endpoint).collect();
    match away.first() {
        Some(first) => alarm(format!(
            ", {} of {} away: {first}",
            away.len(),
            endpoints.len()
        )),
        None => {
            let all = some(endpoints.len(), "endpoint");
            let peers: u64 = endpoints.iter().map(|at| at.connections).sum();
            let quiet = peers == 0 && endpoints.iter().any(|at| at.bound);
            let word = if quiet { "listening" } else { "connected" };
            line.push(Span::raw(format!(", {all} {word}")));
        }
    }
    Line::from(line)
}

fn journal(journal: Option<&Journal>, style: &Style) -> Line<'static> {
    let Some(journal) = journal else {
        return Line::from("journal   none: what is in memory only is lost with the process");
    };
    let mut line = vec![Span::raw("journal   ")];
    match &journal.why {
        Some(why) => line.push(Span::styled(
            format!("{}: {why}", journal.state),
            style.alarm(),
        )),
        None => line.push(Span::raw(journal.state.clone())),
    }
    let messages = journal.end.saturating_sub(journal.begin);
    line.push(Span::raw(format!(
        ", {:.1} MiB, {} messages, {} unsynced",
        journal.bytes as f64 / f64::from(1 << 20),
        count(messages),
        count(
            journal
                .end
                .saturating_sub(journal.durable.max(journal.begin))
        ),
    )));
    Line::from(line)
}

fn consumers(view: &View, seen: &Seen, style: &Style) -> Line<'static> {
    let mut line = vec![Span::raw(format!("consumers {}", seen.consumers.len()))];
    let mut all: Vec<&Consumer> = seen.consumers.iter().collect();
    all.sort_by_key(|consumer| std::cmp::Reverse(consumer.badness()));
    for (at, same) in all.chunk_by(|a, b| a.health == b.health).enumerate() {
        let health = &same[0].health;
        line.push(Span::raw(if at == 0 { ": " } else { ", " }));
        let text = format!("{} {}", same.len(), health.replace('_', " "));
        line.push(Span::styled(text, style.health(health)));
    }
    if !view.detail {
        let way = if view.reverse { ", reversed" } else { "" };
        line.push(Span::raw(format!("; by {}{way}", view.sort.as_str())));
    }
    if !view.filter.is_empty() && !view.detail {
        let shown = view.shown().len();
        line.push(Span::raw(format!("; {shown} with \"{}\"", view.filter)));
    }
    Line::from(line)
}

fn some(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn foot(view: &View, style: &Style) -> Line<'static> {
    let keys = match (&view.front, view.detail) {
        (Front::Filter(_), _) => {
            let text = format!(" filter: {}_   Enter keep  Esc as before", view.filter);
            return Line::styled(text, style.bar());
        }
        (_, true) => " Esc back  Up/Down scroll  p pause/resume  ? help  q quit",
        (_, false) => " Enter why  s sort  r reverse  / filter  p pause/resume  ? help  q quit",
    };
    Line::styled(keys, style.bar())
}

/// The columns that fit, how wide each is, and how much room is left for the past.
fn columns(consumers: &[&Consumer], width: usize, gap: usize) -> (Vec<(Column, usize)>, usize) {
    let natural = |column: Column| {
        let width = column.width(consumers);
        match column {
            Column::Name => width.min(NAME_MAX),
            Column::Forecast => width.clamp(FORECAST, FORECAST_MAX),
            _ => width,
        }
    };
    let mut left = width;
    let mut chosen = Vec::new();
    let must = |column: &Column| !Column::OPTIONAL.contains(column);
    for column in Column::ALL.into_iter().filter(must) {
        let wide = match column {
            Column::Forecast => FORECAST.min(natural(column)),
            _ => natural(column),
        };
        left = left.saturating_sub(wide + gap);
        chosen.push((column, wide));
    }
    for column in Column::OPTIONAL {
        let wide = natural(column);
        if left >= wide + gap {
            left -= wide + gap;
            chosen.push((column, wide));
        }
    }
    chosen.sort_by_key(|(column, _)| Column::ALL.iter().position(|c| c == column));
    if let Some((_, wide)) = chosen.last_mut() {
        let more = (natural(Column::Forecast).saturating_sub(*wide)).min(left);
        *wide += more;
        left -= more;
    }
    let past = match left.checked_sub(gap) {
        Some(room) if room >= SPARK => room.min(SPARK_MAX),
        _ => 0,
    };
    (chosen, past)
}

fn table(frame: &mut Frame<'_>, area: Rect, view: &mut View, style: &Style) {
    let shown = view.shown();
    if shown.is_empty() {
        let text = match view.filter.is_empty() {
            true => " this hub has no consumers".to_owned(),
            false => format!(
                " no consumer with \"{}\"; Esc clears the filter",
                view.filter
            ),
        };
        return frame.render_widget(Paragraph::new(text), area);
    }
    let width = usize::from(area.width);
    let gap = if width < WIDE { 1 } else { 2 };
    let (columns, past) = columns(&shown, width, gap);
    let aligned = |column: Column, text: String| {
        let alignment = match column.is_right() {
            true => Alignment::Right,
            false => Alignment::Left,
        };
        Line::from(text).alignment(alignment)
    };
    let title = |(column, _): &(Column, usize)| {
        let mut look = style.bar();
        if column.sort() == Some(view.sort) {
            look = look.add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
        }
        Cell::from(aligned(*column, column.title().to_owned()).style(look))
    };
    let mut titles: Vec<Cell<'_>> = columns.iter().map(title).collect();
    let mut widths: Vec<Constraint> = (columns.iter())
        .map(|(_, width)| Constraint::Length(*width as u16))
        .collect();
    if past > 0 {
        titles.push(Cell::from(Line::styled("DEPTH, 10 MIN", style.bar())));
        widths.push(Constraint::Length(past as u16));
    }
    let rows = shown.iter().map(|consumer| {
        let cell = |(column, width): &(Column, usize)| {
            let text = cut(column.cell(consumer), *width);
            let line = aligned(*column, text);
            match column {
                Column::Health => Cell::from(line.style(style.health(&consumer.health))),
                Column::Dead if consumer.dead_letters > 0 => Cell::from(line.style(style.title())),
                _ => Cell::from(line),
            }
        };
        let mut cells: Vec<Cell<'_>> = columns.iter().map(cell).collect();
        if past > 0 {
            let depths = view.past.get(&consumer.name).map(|past| &past.depth);
            cells.push(Cell::from(
                depths.map_or(String::new(), |depths| drawn(depths, past)),
            ));
        }
        Row::new(cells)
    });
    let rows: Vec<Row<'_>> = rows.collect();
    let table = Table::new(rows, widths)
        .header(Row::new(titles).style(style.bar()))
        .column_spacing(gap as u16)
        .row_highlight_style(style.bar());
    frame.render_stateful_widget(table, area, &mut view.table);
}

/// A text that fits.
fn cut(text: String, width: usize) -> String {
    match text.chars().count() > width {
        true => text
            .chars()
            .take(width.saturating_sub(1))
            .chain(['…'])
            .collect(),
        false => text,
    }
}

/// The past as bars, so many of them at most; the highest of the points that share one counts.
fn drawn(points: &VecDeque<u64>, width: usize) -> String {
    let each = points.len().div_ceil(width.max(1)).max(1);
    let points: Vec<u64> = points.iter().copied().collect();
    let highest = points
        .chunks(each)
        .map(|some| some.iter().max().copied().unwrap_or(0));
    spark(&highest.collect())
}

/// All there is to say of one consumer.
fn detail(frame: &mut Frame<'_>, area: Rect, view: &mut View, style: &Style) {
    let lines = match view.current() {
        Some(consumer) => about(view, consumer, usize::from(area.width), style),
        None => {
            let name = view.selected.as_deref().unwrap_or("it");
            vec![Line::from(format!(
                " this hub has no consumer {name} any more; Esc goes back"
            ))]
        }
    };
    // Lines are broken here, so that it is known how many there are.
    let lines: Vec<Line<'_>> = lines
        .into_iter()
        .flat_map(|line| broken(line, usize::from(area.width)))
        .collect();
    let most = lines.len().saturating_sub(usize::from(area.height));
    view.scroll = view.scroll.min(u16::try_from(most).unwrap_or(u16::MAX));
    let below = most > usize::from(view.scroll);
    frame.render_widget(Paragraph::new(lines).scroll((view.scroll, 0)), area);
    if below && area.height > 0 {
        let text = " more below: Down ";
        let width = (text.len() as u16).min(area.width);
        let corner = Rect::new(area.right() - width, area.bottom() - 1, width, 1);
        frame.render_widget(Line::styled(text, style.bar()), corner);
    }
}

/// Where a line's name ends and what is said begins.
const NAMED: usize = 11;

/// One line of a name and what is said.
fn line(name: &str, what: impl Into<String>) -> Line<'static> {
    Line::from(format!(" {name:10}{}", what.into()))
}

/// A line in parts that fit, the later ones indented.
fn broken(line: Line<'static>, width: usize) -> Vec<Line<'static>> {
    if line.width() <= width || line.spans.len() != 1 || width <= NAMED + 10 {
        return vec![line];
    }
    let (look, text) = (
        line.style.patch(line.spans[0].style),
        line.spans[0].content.to_string(),
    );
    let mut lines: Vec<String> = vec![String::new()];
    // The name and its spaces are one word.
    let head: String = text.chars().take(NAMED).collect();
    let rest: String = text.chars().skip(NAMED).collect();
    let mut now = head;
    let mut fresh = true;
    for word in rest.split(' ') {
        let mut word = word.to_owned();
        if !fresh && now.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut now, " ".repeat(NAMED)));
            fresh = true;
        }
        // One that never fits is cut.
        while fresh && NAMED + word.chars().count() > width {
            let part: String = word.chars().take(width - NAMED).collect();
            word = word.chars().skip(width - NAMED).collect();
            lines.push(now + &part);
            now = " ".repeat(NAMED);
        }
        if !fresh {
            now.push(' ');
        }
        now.push_str(&word);
        fresh = false;
    }
    lines.push(now);
    lines.remove(0);
    lines
        .into_iter()
        .map(|text| Line::styled(text, look))
        .collect()
}

fn about(view: &View, c: &Consumer, width: usize, style: &Style) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let topics: Vec<&str> = c
        .topics
        .iter()
        .map(|t| if t.is_empty() { "everything" } else { t })
        .collect();
    lines.push(Line::styled(
        format!(
            " {} ({}), {}, {}",
            c.name,
            c.kind,
            some(c.workers, "worker"),
            topics.join(" ")
        ),
        style.title(),
    ));
    lines.push(Line::from(vec![
        Span::raw(format!(" {:10}", "health")),
        Span::styled(Column::Health.cell(c), style.health(&c.health)),
        Span::raw(format!("; {}; {}", Column::State.cell(c), c.drain)),
    ]));
    match &view.why {
        Some((name, Ok(why))) if *name == c.name => because(why, style, &mut lines),
        Some((name, Err(why))) if *name == c.name => {
            lines.push(line("why", format!("the hub does not tell: {why}")));
        }
        _ => lines.push(line("why", "asking ...")),
    }
    let mut depth = format!(
        "{} messages, the oldest {} old; the queue holds {}",
        c.queue_messages,
        words(c.lag_seconds),
        c.queue_capacity_messages
    );
    if c.behind_messages > 0 {
        depth += &format!("; {} are in the journal only", c.behind_messages);
    }
    if c.in_flight > 0 || c.retrying > 0 {
        depth += &format!("; {} in flight, {} to try again", c.in_flight, c.retrying);
    }
    lines.push(line("depth", depth));
    if c.retention_used_ratio > 0.5 {
        let text = format!(
            "{:.0} % of journal.keep is used by what waits for it; at 100 messages are lost",
            c.retention_used_ratio * 100.0
        );
        lines.push(line("retention", text).style(style.alarm()));
    }
    let service = match c.service_per_second {
        Some(service) => format!("; it can do {}/s", rate(service)),
        None => String::new(),
    };
    let (received, settled) = (rate(c.rates.received), rate(c.rates.settled));
    lines.push(line(
        "rates",
        format!("{received}/s in, {settled}/s out{service}"),
    ));
    if let Some(past) = &c.forecast_accuracy {
        lines.push(line(
            "forecasts",
            format!(
                "{} came due; lately {:.0} % of the ranges held",
                past.forecasts,
                past.contained_ratio * 100.0
            ),
        ));
    }
    let mean = c
        .processing
        .mean_seconds
        .map_or("not measured yet".into(), short);
    lines.push(line(
        "delivery",
        format!(
            "{mean} a message on average, {} at most",
            short(c.processing.max_seconds)
        ),
    ));
    lines.push(line(
        "ledger",
        format!(
            "{} received, {} consumed, {} set aside",
            c.received, c.consumed, c.dead_lettered
        ),
    ));
    let dropped = counts(&c.dropped);
    let dropped = dropped
        .iter()
        .map(|(why, n)| format!("{why} {n}"))
        .collect::<Vec<_>>();
    lines.push(match dropped.is_empty() {
        true => line("dropped", "none"),
        false => line("dropped", dropped.join(", ")).style(style.alarm()),
    });
    lines.push(line(
        "failures",
        format!(
            "{} failed, {} tried again, {} panics",
            c.failed, c.retried, c.panics
        ),
    ));
    let dead = match c.dead_letters {
        0 => line("dead", "no letters"),
        n => line(
            "dead",
            format!("{n} letters; weir dead list --consumer {}", c.name),
        ),
    };
    lines.push(dead);
    if let Some(past) = view.past.get(&c.name) {
        let room = width.saturating_sub(NAMED + 24).clamp(10, 120);
        let most = |points: &VecDeque<u64>| points.iter().max().copied().unwrap_or(0);
        let lasted = words(past.depth.len() as f64 * 5.0);
        let depth = drawn(&past.depth, room);
        lines.push(line(
            "depth was",
            format!("{depth}  up to {}", most(&past.depth)),
        ));
        let lag = drawn(&past.lag_ms, room);
        let lag_max = words(most(&past.lag_ms) as f64 / 1000.0);
        lines.push(line("lag was", format!("{lag}  up to {lag_max}")));
        lines.push(line("", format!("the last {lasted}")));
    }
    lines
}

/// A time, also a very short one.
fn short(seconds: f64) -> String {
    match seconds {
        s if s >= 0.05 => words(s),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} us", s * 1e6),
    }
}

fn because(why: &Why, style: &Style, lines: &mut Vec<Line<'static>>) {
    lines.push(line("why", why.reason.clone()).style(style.title()));
    if !why.advice.is_empty() {
        lines.push(line("advice", why.advice.clone()));
    }
    let time: Vec<String> = (why.time.iter())
        .filter(|share| share.ratio >= 0.005)
        .map(|share| {
            format!(
                "{} {:.0} %",
                share.state.as_str().replace('_', " "),
                share.ratio * 100.0
            )
        })
        .collect();
    lines.push(line(
        "time",
        format!("{}, of {}", time.join(", "), words(why.over_seconds)),
    ));
    for hand in why.in_hand.iter().take(LISTED) {
        let topic = hand.topic.as_deref().unwrap_or("");
        let text = format!(
            "message {} {topic}, for {}, {}",
            hand.seq,
            words(hand.for_seconds),
            hand.state.as_str().replace('_', " ")
        );
        lines.push(line("in hand", text));
    }
    for failed in why.lately.failures.iter().take(LISTED) {
        let text = format!(
            "{} x {} (last: {} {})",
            failed.times, failed.cause, failed.seq, failed.topic
        );
        lines.push(line("failed", text));
    }
    for slow in why.lately.slowest.iter().take(LISTED) {
        let text = format!(
            "{}: message {} {}",
            short(slow.seconds),
            slow.seq,
            slow.topic
        );
        lines.push(line("slow", text));
    }
    for cost in why.lately.topics.iter().take(LISTED) {
        let text = format!(
            "{} for {:.0} messages of {}",
            short(cost.seconds),
            cost.messages,
            cost.topic
        );
        lines.push(line("costly", text));
    }
}

#[cfg(test)]
mod tests;
