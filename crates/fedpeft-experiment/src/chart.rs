//! One chart as SVG. Its colours are readable on white and on black.

use std::ops::Range;

use plotters::{
    coord::{
        ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter},
        types::RangedCoordf64,
    },
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::ExperimentError;

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
pub(crate) struct Chart {
    /// Above it.
    pub title: String,
    /// Along it.
    pub x: XAxis,
    /// What is up.
    pub y_label: String,
    /// Where the vertical axis ends.
    pub top: f64,
    /// The lines; each has the colour of its place.
    pub lines: Vec<Line>,
}

/// The horizontal axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum XAxis {
    /// Numbers, as they are or by their logarithms.
    Numbers { label: String, log: bool },
    /// Names, evenly spaced; the points lie at 0, 1, ...
    Names { label: String, names: Vec<String> },
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub name: String,
    pub points: Vec<Point>,
}

/// One point and how far its seeds lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub x: f64,
    pub y: f64,
    pub sd: Option<f64>,
}

impl Chart {
    /// The SVG.
    pub fn draw(&self, name: &str) -> Result<String, ExperimentError> {
        let mut svg = String::new();
        self.draw_into(&mut svg)
            .map_err(|error| ExperimentError::Plot { name: name.to_owned(), message: error.to_string() })?;
        Ok(svg)
    }

    fn draw_into(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let (plot, legend) = root.split_horizontally(SIZE.0 - LEGEND);
        let text = |size: i32| ("sans-serif", size).into_font().color(&INK);
        let mut chart = ChartBuilder::on(&plot)
            .caption(&self.title, text(18))
            .margin(8)
            .x_label_area_size(42)
            .y_label_area_size(52)
            .build_cartesian_2d(self.ticks(), 0.0..self.top)?;
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
        for (index, (line, colour)) in self.lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
            self.draw_line(&mut chart, line, *colour)?;
            let y = 40 + 18 * i32::try_from(index)?;
            legend.draw(&PathElement::new([(4, y), (22, y)], colour.stroke_width(2)))?;
            legend.draw(&Text::new(line.name.as_str(), (28, y), text(15).pos(middle_left)))?;
        }
        root.present()?;
        Ok(())
    }

    fn draw_line<'a>(
        &self,
        chart: &mut Plane<'a>,
        line: &Line,
        colour: RGBColor,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let place = |point: &Point| (self.x.place(point.x), point.y);
        let at: Vec<(f64, f64)> = line.points.iter().map(place).collect();
        chart.draw_series(LineSeries::new(at.iter().copied(), colour.stroke_width(2)))?;
        chart.draw_series(at.iter().map(|at| Circle::new(*at, 2, colour.filled())))?;
        let bars = line.points.iter().filter_map(|point| {
            let (sd, (x, y)) = (point.sd?, place(point));
            let low = (y - sd).max(0.0);
            Some(ErrorBar::new_vertical(x, low, y, (y + sd).min(self.top), colour.mix(0.6).filled(), 5))
        });
        chart.draw_series(bars)?;
        Ok(())
    }

    /// Where the horizontal axis begins and ends, and its ticks.
    fn ticks(&self) -> Ticks {
        let places = self.lines.iter().flat_map(|line| &line.points).map(|point| self.x.place(point.x));
        let (low, high) = places
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), place| (low.min(place), high.max(place)));
        let (range, at) = match &self.x {
            XAxis::Names { names, .. } => {
                let count = names.len();
                (-0.5..count as f64 - 0.5, (0..count).map(|at| at as f64).collect())
            }
            XAxis::Numbers { log: true, .. } if low.is_finite() => {
                let (low, high) = (low - 0.1, high + 0.1);
                let marks: &[f64] = if high - low > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let decades = low.floor() as i32..=high.ceil() as i32;
                let at =
                    decades.flat_map(|decade| marks.iter().map(move |mark| mark.log10() + f64::from(decade)));
                (low..high, at.filter(|at| (low..=high).contains(at)).collect())
            }
            XAxis::Numbers { .. } => {
                let high = if high.is_finite() && high > 0.0 { high } else { 1.0 };
                let step = round_step(high / 6.0);
                // Rounds are whole.
                let whole =
                    self.lines.iter().flat_map(|line| &line.points).all(|point| point.x.fract() == 0.0);
                let step = if whole { step.max(1.0) } else { step };
                let count = (high / step).floor() as u32;
                (0.0..1.02 * high, (0..=count).map(|at| f64::from(at) * step).collect())
            }
        };
        Ticks { range, at, axis: self.x.clone() }
    }
}

type Plane<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<Ticks, RangedCoordf64>>;

/// The horizontal axis with the places of its ticks.
struct Ticks {
    range: Range<f64>,
    at: Vec<f64>,
    axis: XAxis,
}

impl Ranged for Ticks {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.range.clone()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.at.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Ticks {
    fn format_ext(&self, at: &f64) -> String {
        self.axis.tick(*at)
    }
}

/// The least of 1, 2 and 5 times a power of ten that is no less than `step`.
fn round_step(step: f64) -> f64 {
    let decade = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|mark| mark * decade).into_iter().find(|own| *own >= step).unwrap_or(step)
}

impl XAxis {
    fn label(&self) -> &str {
        match self {
            Self::Numbers { label, .. } | Self::Names { label, .. } => label,
        }
    }

    fn place(&self, x: f64) -> f64 {
        match self {
            Self::Numbers { log: true, .. } => x.max(f64::MIN_POSITIVE).log10(),
            Self::Numbers { .. } | Self::Names { .. } => x,
        }
    }

    fn tick(&self, at: f64) -> String {
        // Ticks have one significant digit or two; the sums of floats have more.
        let short = |value: f64| format!("{}", (value * 1e6).round() / 1e6);
        match self {
            Self::Numbers { log: true, .. } => short(10f64.powf(at)),
            Self::Numbers { .. } => short(at),
            Self::Names { names, .. } => names.get(at.max(0.0).round() as usize).cloned().unwrap_or_default(),
        }
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
        Chart { title: "alpha=0.1".into(), x, y_label: "accuracy".into(), top: 0.7, lines }
    }

    #[test]
    fn everything_is_drawn() {
        let svg = chart(XAxis::Numbers { label: "MiB".into(), log: true }).draw("x").unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["alpha=0.1", "MiB", "accuracy", "bias", "&lt;full&gt;", "100"] {
            assert!(svg.contains(text), "no {text}");
        }
        // Every point, and another one within every error bar.
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(svg.contains("#3B8EDE") && svg.contains("#E67E22"));
    }

    #[test]
    fn ticks_are_round() {
        let ticks = |x| {
            let chart = chart(x);
            chart.ticks().at.iter().map(|at| chart.x.tick(*at)).collect::<Vec<_>>()
        };
        assert_eq!(
            ticks(XAxis::Numbers { label: String::new(), log: false }),
            ["0", "50", "100", "150", "200"]
        );
        let log = ticks(XAxis::Numbers { label: String::new(), log: true });
        assert_eq!(log, ["1", "2", "5", "10", "20", "50", "100", "200"]);
        let names = vec!["iid".to_owned(), "0.1".to_owned()];
        assert_eq!(ticks(XAxis::Names { label: String::new(), names: names.clone() }), names);
    }

    #[test]
    fn an_empty_chart_is_drawn_too() {
        let empty = Chart { lines: Vec::new(), ..chart(XAxis::Numbers { label: String::new(), log: true }) };
        empty.draw("x").unwrap();
    }
}
