//! One chart as SVG. Its colours are readable on white and on black.

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    PageError,
    axis::{Ticks, XAxis, YAxis},
};

const SIZE: (u32, u32) = (640, 360);
/// Width of the column with the names of the lines.
const LEGEND: u32 = 150;
const INK: RGBColor = RGBColor(128, 128, 128);
const COLOURS: [RGBColor; 8] = [
    RGBColor(59, 142, 222),
    RGBColor(230, 126, 34),
    RGBColor(44, 160, 106),
    RGBColor(192, 84, 155),
    RGBColor(176, 148, 0),
    RGBColor(138, 109, 224),
    RGBColor(217, 83, 79),
    RGBColor(23, 162, 184),
];

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Along it.
    pub x: XAxis,
    /// What is up.
    pub y_label: String,
    /// How far up.
    pub y: YAxis,
    /// How points are drawn.
    pub marks: Marks,
    /// The lines; each has the colour of its place.
    pub lines: Vec<Line>,
}

/// How the points of a line are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// As dots with a line through them.
    Lines,
    /// As bars, of unit width, upon those of the lines before. Lines have points at the same places, in order.
    Stacked,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What it shows.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<Point>,
}

/// One point and how far its seeds lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Where.
    pub x: f64,
    /// How high.
    pub y: f64,
    /// Standard deviation, where there is one.
    pub sd: Option<f64>,
}

/// A chart as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// The name of its file, without `.svg`.
    pub name: String,
    /// What it shows, for those who cannot see it.
    pub title: String,
    /// The SVG.
    pub svg: String,
}

type Plane<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<Ticks, Ticks>>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

impl Chart {
    /// The SVG. Points that are no numbers are left out.
    pub fn draw(&self, name: &str) -> Result<String, PageError> {
        let mut svg = String::new();
        self.draw_into(&mut svg)
            .map_err(|error| PageError::Plot { name: name.to_owned(), message: error.to_string() })?;
        Ok(svg)
    }

    fn draw_into(&self, svg: &mut String) -> Drawn {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let (plot, legend) = root.split_horizontally(SIZE.0 - LEGEND);
        let text = |size: i32| ("sans-serif", size).into_font().color(&INK);
        let points = self.lines.iter().flat_map(|line| &line.points).filter(|point| point.is_finite());
        let x = self.x.ticks(points.clone().map(|point| point.x), self.marks == Marks::Stacked);
        let mut chart = ChartBuilder::on(&plot)
            .caption(&self.title, text(18))
            .margin(8)
            .x_label_area_size(42)
            .y_label_area_size(58)
            .build_cartesian_2d(x, self.y.ticks(points.map(|point| point.y)))?;
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(INK.mix(0.25))
            .light_line_style(TRANSPARENT)
            .label_style(text(15))
            .axis_desc_style(text(16))
            .x_desc(self.x.label())
            .y_desc(&self.y_label)
            .draw()?;
        let middle_left = Pos::new(HPos::Left, VPos::Center);
        let mut below = Vec::new();
        for (index, (line, colour)) in self.lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
            match self.marks {
                Marks::Lines => self.draw_line(&mut chart, line, *colour)?,
                Marks::Stacked => self.draw_bars(&mut chart, line, *colour, &mut below)?,
            }
            let y = 40 + 18 * i32::try_from(index)?;
            legend.draw(&PathElement::new([(4, y), (22, y)], colour.stroke_width(2)))?;
            legend.draw(&Text::new(line.name.as_str(), (28, y), text(15).pos(middle_left)))?;
        }
        root.present()?;
        Ok(())
    }

    fn draw_line<'a>(&self, chart: &mut Plane<'a>, line: &Line, colour: RGBColor) -> Drawn {
        // Zero has no logarithm.
        let shown = |point: &&Point| point.is_finite() && (self.y != YAxis::Log || point.y > 0.0);
        let points: Vec<&Point> = line.points.iter().filter(shown).collect();
        let place = |point: &Point| (self.x.place(point.x), self.y.place(point.y));
        let at: Vec<(f64, f64)> = points.iter().map(|point| place(point)).collect();
        chart.draw_series(LineSeries::new(at.iter().copied(), colour.stroke_width(2)))?;
        chart.draw_series(at.iter().map(|at| Circle::new(*at, 2, colour.filled())))?;
        let YAxis::UpTo(top) = self.y else { return Ok(()) };
        let bars = points.iter().filter_map(|point| {
            let (sd, (x, y)) = (point.sd?, place(point));
            let low = (y - sd).max(0.0);
            Some(ErrorBar::new_vertical(x, low, y, (y + sd).min(top), colour.mix(0.6).filled(), 5))
        });
        chart.draw_series(bars)?;
        Ok(())
    }

    /// `below` is how high the bars are so far.
    fn draw_bars<'a>(
        &self,
        chart: &mut Plane<'a>,
        line: &Line,
        colour: RGBColor,
        below: &mut Vec<f64>,
    ) -> Drawn {
        below.resize(below.len().max(line.points.len()), 0.0);
        let bars = line.points.iter().zip(below).filter(|(point, _)| point.is_finite() && point.y > 0.0);
        chart.draw_series(bars.map(|(point, below)| {
            let (x, from) = (self.x.place(point.x), *below);
            *below += point.y;
            Rectangle::new([(x - 0.4, from), (x + 0.4, *below)], colour.filled())
        }))?;
        Ok(())
    }

    /// The chart as a figure of this name, described by what is up and along.
    pub fn figure(&self, name: &str, title: impl Into<String>) -> Result<Figure, PageError> {
        Ok(Figure { name: name.to_owned(), title: title.into(), svg: self.draw(name)? })
    }
}

impl Point {
    /// A point of which there is one measurement.
    pub fn new(x: impl Into<f64>, y: f64) -> Self {
        Self { x: x.into(), y, sd: None }
    }

    fn is_finite(&self) -> bool {
        self.x.is_finite() && self.y.is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(x: XAxis) -> Chart {
        let point = |x: f64, y: f64, sd| Point { x, y, sd };
        let line = |name: &str, y: f64| Line {
            name: name.into(),
            points: vec![point(1.0, y, Some(0.05)), point(200.0, y + 0.1, None)],
        };
        let lines = vec![line("bias", 0.3), line("<full>", 0.5)];
        let (title, y_label) = ("alpha=0.1".into(), "accuracy".into());
        Chart { title, x, y_label, y: YAxis::UpTo(0.7), marks: Marks::Lines, lines }
    }

    fn mib() -> XAxis {
        XAxis::Numbers { label: "MiB".into(), log: true }
    }

    #[test]
    fn everything_is_drawn() {
        let svg = chart(mib()).draw("x").unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["alpha=0.1", "MiB", "accuracy", "bias", "&lt;full&gt;", "100"] {
            assert!(svg.contains(text), "no {text}");
        }
        // Every point, and another one within every error bar.
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(svg.contains("#3B8EDE") && svg.contains("#E67E22"));
        assert!(!svg.contains("style="), "a strict policy would ignore it");
    }

    #[test]
    fn an_empty_chart_is_drawn_too() {
        let empty = Chart { lines: Vec::new(), ..chart(mib()) };
        empty.draw("x").unwrap();
    }

    #[test]
    fn bars_are_stacked() {
        let rounds = XAxis::Numbers { label: "round".into(), log: false };
        let mut stacked = Chart { marks: Marks::Stacked, y: YAxis::UpTo(10.0), ..chart(rounds) };
        let points = |ys: [f64; 3]| (1..).zip(ys).map(|(x, y)| Point::new(x, y)).collect::<Vec<_>>();
        stacked.lines[0].points = points([1.0, 0.0, f64::NAN]);
        stacked.lines[1].points = points([2.0, 3.0, 4.0]);
        let svg = stacked.draw("x").unwrap();
        assert_eq!(svg.matches("<rect").count(), 4, "{svg}");
    }

    #[test]
    fn nothing_and_no_number_have_no_place_among_logarithms() {
        let mut log = Chart { y: YAxis::Log, ..chart(mib()) };
        log.lines[0].points[0].y = 0.0;
        log.lines[1].points[1].y = f64::INFINITY;
        let svg = log.draw("x").unwrap();
        assert_eq!(svg.matches("<circle").count(), 2);
    }
}
