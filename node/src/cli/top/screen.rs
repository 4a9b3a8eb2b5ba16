//! How it looks: a table of all, or one function closely; and the table as text.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Bar, BarChart, BarGroup, Block, Cell, Paragraph, Row as Cells, Table, TableState};

use super::model::{Column, Model, Row};
use crate::cli::table::{self, span};
use crate::units::Size;

const HELP: &str = " q end   ↑↓ choose   enter look closely   esc back   s sort   r reverse   / filter ";

/// The whole screen.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(3), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Paragraph::new(summary(model)), head);
    match model.inside() {
        Some((name, row)) => inside(frame, body, name, row.as_ref(), model),
        None => all(frame, body, model),
    }
    let foot_line = match model.is_typing {
        true => format!(" filter: {}_", model.filter()),
        false if !model.filter().is_empty() => format!("{HELP}  filter: {}", model.filter()),
        false => HELP.into(),
    };
    frame.render_widget(Paragraph::new(foot_line).style(Style::new().add_modifier(Modifier::REVERSED)), foot);
}

/// The table, for a pipe or a log.
pub(super) fn text(model: &Model) -> String {
    let mut lines: String = summary(model).iter().map(|line| format!("{line}\n")).collect();
    let [name, numbers @ ..] = HEADINGS.map(Column::heading);
    let numbers: Vec<String> = numbers.iter().map(|heading| format!(">{heading}")).collect();
    let headings: Vec<&str> = std::iter::once(name).chain(numbers.iter().map(String::as_str)).collect();
    let headings: [&str; 9] = headings.try_into().expect("as many as there were");
    let mut table = table::Table::new(headings);
    for row in model.rows() {
        table.row(cells(&row));
    }
    lines.push_str(&table.print());
    lines
}

const HEADINGS: [Column; 9] = [
    Column::Name,
    Column::Rate,
    Column::Failed,
    Column::P50,
    Column::P99,
    Column::Queue,
    Column::Cpu,
    Column::Memory,
    Column::Instances,
];

fn cells(row: &Row) -> [String; 9] {
    let name = if row.is_chain { format!("{} (chain)", row.name) } else { row.name.clone() };
    [
        name,
        format!("{:.1}", row.rate),
        format!("{:.1}", row.failed),
        bound(row.p50_ms),
        bound(row.p99_ms),
        row.queued.to_string(),
        format!("{:.1}", row.cpu_percent),
        Size::bytes(row.resident_bytes).rounded(),
        format!("{}/{}", row.busy, row.processes),
    ]
}

/// Latencies are upper bounds, and say so.
fn bound(ms: Option<f64>) -> String {
    match ms {
        None => "-".into(),
        Some(ms) if ms.is_infinite() => ">30000".into(),
        Some(ms) => format!("<{ms}"),
    }
}

fn summary(model: &Model) -> Vec<Line<'static>> {
    let Some(now) = model.now() else { return Vec::new() };
    let rows = model.rows();
    // (The sum of no floats is -0.)
    let sum = |of: fn(&Row) -> f64| rows.iter().map(of).fold(0.0, |sum, one| sum + one);
    let (rate, failed) = (sum(|row| row.rate), sum(|row| row.failed));
    let cpu = sum(|row| row.cpu_percent);
    let (busy, processes) = rows.iter().fold((0, 0), |(b, p), row| (b + row.busy, p + row.processes));
    vec![
        Line::from(format!(
            "spryd up {}, {}, {} CPUs, resident {}",
            span(now.uptime_ms),
            now.transport,
            now.cpus,
            Size::bytes(now.spryd.resident_bytes).rounded()
        )),
        Line::from(format!(
            "{rate:.1} calls/s, {failed:.1} failed/s, functions' CPU {cpu:.0} %, {busy} of {processes} processes busy"
        )),
    ]
}

fn all(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let (sort, reversed) = model.sort();
    let headings = HEADINGS.map(|column| {
        let mark = match (column == sort, reversed) {
            (true, false) => "▼",
            (true, true) => "▲",
            (false, _) => "",
        };
        Cell::from(format!("{}{mark}", column.heading()))
    });
    let rows = model.rows();
    let shown = rows.iter().map(|row| {
        let color = match row {
            _ if row.failed > 0.0 => Style::new().fg(Color::Red),
            _ if row.queued > 0 => Style::new().fg(Color::Yellow),
            _ => Style::new(),
        };
        Cells::new(cells(row)).style(color)
    });
    let mut widths = [Constraint::Length(10); 9];
    widths[0] = Constraint::Min(16);
    let table = Table::new(shown, widths)
        .header(Cells::new(headings).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(Some(model.selected().min(rows.len().saturating_sub(1))));
    frame.render_stateful_widget(table, area, &mut state);
}

fn inside(frame: &mut Frame<'_>, area: Rect, name: &str, row: Option<&Row>, model: &Model) {
    let block = Block::bordered().title(format!(" {name} "));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let Some(row) = row else {
        return frame.render_widget(Paragraph::new("It is not deployed any more; esc leads back."), inner);
    };
    let [numbers, chart, calls] =
        Layout::vertical([Constraint::Length(3), Constraint::Length(9), Constraint::Min(2)]).areas(inner);
    let lines = vec![
        Line::from(format!(
            "{:.1} calls/s, {:.1} failed/s; half within {} ms, 99 of 100 within {} ms",
            row.rate,
            row.failed,
            bound(row.p50_ms),
            bound(row.p99_ms)
        )),
        Line::from(format!(
            "{} of {} processes busy, {} calls wait; {:.1} % of the calls had a process started for them",
            row.busy, row.processes, row.queued, row.started_percent
        )),
        Line::from(format!(
            "CPU {:.1} %, resident {}",
            row.cpu_percent,
            Size::bytes(row.resident_bytes).rounded()
        )),
    ];
    frame.render_widget(Paragraph::new(lines), numbers);
    let bounds = model.now().map_or(&[][..], |now| &now.bounds_ms);
    let bars: Vec<Bar<'_>> = row
        .spread
        .iter()
        .enumerate()
        .map(|(at, count)| {
            let label = bounds.get(at).map_or("more".to_owned(), |ms| format!("<{ms}"));
            Bar::default().value(*count).label(Line::from(label))
        })
        .collect();
    let chart_block = Block::new().title("calls since the last look, by milliseconds");
    let chart_widget =
        BarChart::default().block(chart_block).bar_width(6).data(BarGroup::default().bars(&bars));
    frame.render_widget(chart_widget, chart);
    let shown = model.calls().iter().map(|call| {
        let style = if call.error.is_some() { Style::new().fg(Color::Red) } else { Style::new() };
        let start = call.start.map_or("-", |start| start.as_str());
        let times = [call.queue_ms, call.start_ms, call.exec_ms].map(|ms| format!("{ms:.2}"));
        let [queue, start_ms, exec] = times;
        let error = call.error.clone().unwrap_or_default();
        let at = table::instant(call.started_unix_ms);
        Cells::new([
            call.call_id.clone(),
            at,
            start.into(),
            call.status.to_string(),
            queue,
            start_ms,
            exec,
            error,
        ])
        .style(style)
    });
    let widths = [34, 25, 7, 6, 9, 9, 9, 18].map(Constraint::Length);
    let heading =
        Cells::new(["CALL", "STARTED", "START", "STATUS", "QUEUE ms", "START ms", "EXEC ms", "ERROR"]);
    let heading = heading.style(Style::new().add_modifier(Modifier::BOLD));
    frame.render_widget(Table::new(shown, widths).header(heading), calls);
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::two_looks;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent};

    /// The screen's lines.
    fn drawn(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, model)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    #[test]
    fn all_functions_are_a_table() {
        let lines = drawn(&two_looks(), 110, 12);
        assert!(lines[0].starts_with("spryd up ") && lines[0].contains("sockmap, 2 CPUs"), "{lines:#?}");
        assert!(
            lines[1].starts_with("52.0 calls/s, 5.0 failed/s, functions' CPU 50 %, 6 of 9"),
            "{lines:#?}"
        );
        assert!(lines[2].starts_with("NAME") && lines[2].contains("CALLS/s▼"), "{lines:#?}");
        let busy: Vec<&str> = lines[3].split_whitespace().collect();
        assert_eq!(
            busy,
            ["busy", "50.0", "5.0", "<0.1", ">30000", "4", "50.0", "5", "MiB", "2/3"],
            "{lines:#?}"
        );
        assert!(lines[4].starts_with("new ") && lines[5].starts_with("still "), "{lines:#?}");
        assert!(lines[11].contains("q end"), "{lines:#?}");
    }

    #[test]
    fn one_function_is_seen_closely() {
        let mut model = two_looks();
        model.key(KeyEvent::from(KeyCode::Enter));
        let lines = drawn(&model, 130, 24);
        let whole = lines.join("\n");
        for words in [" busy ", "half within <0.1 ms", "calls since the last look", "<0.1", "more", "EXEC ms"]
        {
            assert!(whole.contains(words), "{words}:\n{whole}");
        }
    }

    #[test]
    fn a_screen_of_any_size_is_drawn() {
        let mut model = two_looks();
        for (width, height) in [(1, 1), (5, 3), (20, 5), (300, 100)] {
            drawn(&model, width, height);
            model.key(KeyEvent::from(KeyCode::Enter));
            drawn(&model, width, height);
            model.key(KeyEvent::from(KeyCode::Esc));
        }
    }

    #[test]
    fn the_text_has_the_same_numbers() {
        let text = text(&two_looks());
        let line = text.lines().find(|line| line.starts_with("busy")).expect("a row");
        assert_eq!(line.split_whitespace().nth(1), Some("50.0"), "{text}");
        assert!(!text.contains('\u{1b}'), "no escape sequences");
    }
}
