//! Rectangles of letters that are put below and beside one another.

/// Columns that a frame takes.
pub(super) const FRAME: usize = 4;
/// Columns between branches.
const GAP: usize = 2;
/// Columns of a case's text at most where branches stand side by side.
const LABEL_MAX: usize = 36;

/// Lines of one width, and where the line of flow goes in and out.
#[derive(Debug, Clone)]
pub(super) struct Block {
    lines: Vec<Vec<char>>,
    width: usize,
    /// The column of the line of flow, at the top and at the bottom.
    anchor: usize,
    /// Whether the flow ends in an arrow when it comes in; where lines only part, it doesn't.
    arrow: bool,
}

/// One of several blocks that begin and end together.
#[derive(Debug)]
pub(super) struct Branch {
    /// What stands above it.
    pub(super) label: Option<String>,
    /// As it is drawn beside others.
    pub(super) beside: Block,
    /// As it is drawn below others in a frame.
    pub(super) below: Block,
}

impl Block {
    fn new(lines: Vec<String>, anchor: usize, arrow: bool) -> Self {
        let lines: Vec<Vec<char>> = lines.iter().map(|line| line.chars().collect()).collect();
        let width = lines.iter().map(Vec::len).max().unwrap_or(0).max(anchor + 1);
        let mut block = Self { lines, width, anchor, arrow };
        block.widen(0, width);
        block
    }

    /// Words without a box.
    pub(super) fn words(text: &str) -> Self {
        Self::new(vec![text.to_owned()], text.chars().count() / 2, true)
    }

    /// Nothing happens here.
    pub(super) fn passage() -> Self {
        Self::new(vec!["│".into()], 0, false)
    }

    /// Lines in a box, cut off at `width`.
    pub(super) fn boxed(lines: &[String], width: usize) -> Self {
        let lines: Vec<String> = lines.iter().map(|line| clip(line, width - FRAME)).collect();
        let inner = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        let rule = "─".repeat(inner + 2);
        let mut drawn = vec![format!("┌{rule}┐")];
        drawn.extend(lines.iter().map(|line| format!("│ {line:<inner$} │")));
        drawn.push(format!("└{rule}┘"));
        Self::new(drawn, (inner + 3) / 2, true)
    }

    /// A block in a frame with a title.
    pub(super) fn framed(title: &str, inner: Self, width: usize) -> Self {
        let anchor = inner.anchor + 2;
        let mut framed = frame(&[(title.to_owned(), inner)], width);
        framed.anchor = anchor;
        framed
    }

    /// One below the other, with arrows between. The flow is straight if that fits `width`, else it bends.
    pub(super) fn sequence(blocks: Vec<Self>, width: usize) -> Self {
        let straight = blocks.iter().map(|block| block.anchor).max().unwrap_or(0);
        let right = blocks.iter().map(|block| block.width - block.anchor).max().unwrap_or(1);
        let bends = straight + right > width;
        let (middle, width) = if bends { (width / 2, width) } else { (straight, straight + right) };
        let arrow = blocks.first().is_some_and(|block| block.arrow);
        let mut lines: Vec<Vec<char>> = Vec::new();
        let mut entry = None;
        let mut at = middle;
        for mut block in blocks {
            let left = middle.saturating_sub(block.anchor).min(width - block.width);
            block.widen(left, width);
            if let Some(last) = lines.last_mut() {
                leave(&mut last[at]);
                if at != block.anchor {
                    lines.push(bend(at, block.anchor, width));
                }
                let mut flow = vec![' '; width];
                flow[block.anchor] = if block.arrow { '▼' } else { '│' };
                lines.push(flow);
            }
            at = block.anchor;
            entry.get_or_insert(at);
            lines.extend(block.lines);
        }
        let anchor = entry.unwrap_or(middle);
        if at != anchor {
            // Left where it was entered.
            if let Some(last) = lines.last_mut() {
                leave(&mut last[at]);
            }
            lines.push(bend(at, anchor, width));
        }
        Self { lines, width, anchor, arrow }
    }

    /// Side by side if that fits `width`, else in a frame: `title` above, `between` them.
    pub(super) fn branches(title: &str, between: &str, branches: Vec<Branch>, width: usize) -> Self {
        let beside: Vec<Self> = branches.iter().map(Branch::headed).collect();
        let needed = beside.iter().map(|block| block.width + GAP).sum::<usize>() - GAP;
        if needed <= width {
            return side_by_side(beside);
        }
        let titled = branches.into_iter().enumerate().map(|(index, branch)| {
            let word = if index == 0 { title } else { between };
            let label = branch.label.map(|label| format!(": {label}")).unwrap_or_default();
            (format!("{word}{label}"), branch.below)
        });
        frame(&titled.collect::<Vec<_>>(), width)
    }

    /// The lines without what is blank at their ends.
    pub(super) fn print(&self) -> String {
        let line = |line: &Vec<char>| line.iter().collect::<String>().trim_end().to_owned() + "\n";
        self.lines.iter().map(line).collect()
    }

    /// Adds blanks at the left, and at the right up to `width`.
    fn widen(&mut self, left: usize, width: usize) {
        for line in &mut self.lines {
            line.splice(0..0, std::iter::repeat_n(' ', left));
            line.resize(width, ' ');
        }
        self.anchor += left;
        self.width = width;
    }

    fn lengthen(&mut self, height: usize) {
        if self.lines.len() < height
            && let Some(last) = self.lines.last_mut()
        {
            leave(&mut last[self.anchor]);
        }
        while self.lines.len() < height {
            let mut line = vec![' '; self.width];
            line[self.anchor] = '│';
            self.lines.push(line);
        }
    }
}

impl Branch {
    /// The branch with what leads into it: its label and an arrow.
    fn headed(&self) -> Block {
        let mut block = self.beside.clone();
        if let Some(label) = &self.label {
            let label = Block { arrow: false, ..Block::words(&clip(label, LABEL_MAX)) };
            return Block::sequence(vec![label, block], usize::MAX);
        }
        let mut arrow = vec![' '; block.width];
        arrow[block.anchor] = if block.arrow { '▼' } else { '│' };
        block.lines.insert(0, arrow);
        block
    }
}

/// The flow moves from one column to another.
fn bend(from: usize, to: usize, width: usize) -> Vec<char> {
    let mut line = vec![' '; width];
    line[from.min(to)..=from.max(to)].fill('─');
    (line[from], line[to]) = if from < to { ('└', '┐') } else { ('┘', '┌') };
    line
}

/// Where the flow leaves a block downwards: the lower edge of a box opens.
fn leave(edge: &mut char) {
    if matches!(*edge, '─' | '╌') {
        *edge = '┬';
    }
}

/// Blocks between two rails.
fn side_by_side(blocks: Vec<Block>) -> Block {
    let height = blocks.iter().map(|block| block.lines.len()).max().unwrap_or(0);
    let mut lines: Vec<Vec<char>> = vec![Vec::new(); height];
    let mut anchors = Vec::with_capacity(blocks.len());
    let mut width = 0;
    for (index, mut block) in blocks.into_iter().enumerate() {
        let gap = if index == 0 { 0 } else { GAP };
        block.lengthen(height);
        // The lower rail is below.
        if let Some(last) = block.lines.last_mut() {
            leave(&mut last[block.anchor]);
        }
        anchors.push(width + gap + block.anchor);
        for (line, more) in lines.iter_mut().zip(block.lines) {
            line.extend(std::iter::repeat_n(' ', gap));
            line.extend(more);
        }
        width += gap + block.width;
    }
    let (first, last) = (anchors[0], anchors[anchors.len() - 1]);
    let anchor = (first + last) / 2;
    lines.insert(0, rail(&anchors, anchor, width, true));
    lines.push(rail(&anchors, anchor, width, false));
    Block { lines, width, anchor, arrow: false }
}

/// The line at which the flow parts (`down`), or comes together.
fn rail(anchors: &[usize], anchor: usize, width: usize, down: bool) -> Vec<char> {
    let (first, last) = (anchors[0], anchors[anchors.len() - 1]);
    let at = |column: usize| {
        let branch = anchors.contains(&column);
        let trunk = column == anchor;
        let (above, below) = if down { (trunk, branch) } else { (branch, trunk) };
        let (left, right) = (column > first && column <= last, column >= first && column < last);
        match (above, below, left, right) {
            (true, true, true, true) => '┼',
            (true, true, true, false) => '┤',
            (true, true, false, true) => '├',
            (true, true, false, false) => '│',
            (true, false, true, true) => '┴',
            (true, false, true, false) => '┘',
            (true, false, false, true) => '└',
            (false, true, true, true) => '┬',
            (false, true, true, false) => '┐',
            (false, true, false, true) => '┌',
            (false, false, true, true) => '─',
            _ => ' ',
        }
    };
    (0..width).map(at).collect()
}

/// Blocks one below the other in one frame, a title above each.
fn frame(parts: &[(String, Block)], width: usize) -> Block {
    let titles: Vec<String> = parts.iter().map(|(title, _)| clip(title, width - FRAME - 2)).collect();
    let widest_title = titles.iter().map(|title| title.chars().count() + 2).max().unwrap_or(0);
    let widest = parts.iter().map(|(_, block)| block.width).max().unwrap_or(0);
    let inner = widest.max(widest_title);
    let mut lines = Vec::new();
    for (index, ((_, block), title)) in parts.iter().zip(&titles).enumerate() {
        let (left, right) = if index == 0 { ('┌', '┐') } else { ('├', '┤') };
        let rest = "╌".repeat(inner + 1 - title.chars().count() - 2);
        lines.push(format!("{left}╌ {title} {rest}{right}"));
        for line in &block.lines {
            let line: String = line.iter().collect();
            lines.push(format!("╎ {line:<inner$} ╎"));
        }
    }
    lines.push(format!("└{}┘", "╌".repeat(inner + 2)));
    Block::new(lines, (inner + 3) / 2, true)
}

/// The text, its end left out if it is longer than `width`.
pub(super) fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut clipped: String = text.chars().take(width.saturating_sub(1)).collect();
    clipped.push('…');
    clipped
}
