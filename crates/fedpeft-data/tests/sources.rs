//! Every kind of data from files to batches, and what is said of wrong ones.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use fedpeft_data::{
    Column, DataError, DataSpec, Federation, FitError, IGNORED, Input, LabelKind, Prepared, TextInput,
    TokenColumn,
};
use image::{Rgb, RgbImage};
use tempfile::TempDir;

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A specification of a whole source: everything dealt out to two clients, `text` in TOML with `@` for `folder`.
fn spec(folder: &Path, text: &str) -> DataSpec {
    let text = text.replace('@', &format!("{}/", folder.display()));
    toml::from_str(&format!(
        "samples_per_client = 0\nmin_examples = 1\neval_examples = 0\nclients = 2\n{text}"
    ))
    .unwrap()
}

fn load(folder: &Path, text: &str) -> Result<Federation, String> {
    Federation::load(&spec(folder, text)).map_err(|error| error.to_string())
}

/// One word, one token: the length of the word.
fn words(text: &str) -> Result<Vec<u32>, String> {
    Ok(text.split_whitespace().take(4).map(|word| word.len() as u32).collect())
}

fn texts<'a>(columns: &'a [TokenColumn]) -> TextInput<'a> {
    TextInput { columns, length: 4, pad_id: 99, tokenize: &words }
}

fn float_labels(prepared: &Prepared, width: usize) -> Vec<f32> {
    let all: Vec<usize> = (0..prepared.data().len()).collect();
    let mut ids = vec![0; all.len() * 4];
    let mut labels = vec![f32::NAN; all.len() * width];
    prepared.fill(&all, &mut [Column::I64(&mut ids)], Column::F32(&mut labels)).unwrap();
    labels
}

#[test]
fn a_folder_of_texts_is_split_by_class_and_becomes_tokens() {
    let folder = TempDir::new().unwrap();
    for i in 0..10 {
        write(folder.path(), &format!("news/arts/{i}.txt"), format!("a bb {}", "c".repeat(i + 1)));
        write(folder.path(), &format!("news/sport/{i}.txt"), "goal");
    }
    write(folder.path(), "news/.hidden", "not looked at");
    let text =
        "kind = \"text_folder\"\ntrain = \"@news\"\nclasses = 2\npartition = { kind = \"iid\" }\nseed = 4";
    let federation = load(folder.path(), text).unwrap();
    assert_eq!(federation.class_names(), ["arts", "sport"]);
    assert_eq!((federation.held_out().len(), federation.partition().total()), (4, 16));
    assert_eq!(federation.table().totals(), [8, 8]);
    assert_eq!(federation.table().names, ["arts", "sport"]);
    let again = load(folder.path(), text).unwrap();
    assert_eq!(again.partition(), federation.partition());

    let columns = [TokenColumn::Mask, TokenColumn::Ids, TokenColumn::Types];
    let prepared = federation.client(0).unwrap().prepare_texts(&texts(&columns)).unwrap();
    let all: Vec<usize> = (0..8).collect();
    let (mut mask, mut ids, mut types, mut labels) = ([7; 32], [7; 32], [7; 32], [7; 8]);
    let mut inputs = [Column::I64(&mut mask), Column::I64(&mut ids), Column::I64(&mut types)];
    prepared.fill(&all, &mut inputs, Column::I64(&mut labels)).unwrap();
    for (example, label) in labels.into_iter().enumerate() {
        let row = &ids[example * 4..][..4];
        let (wanted, length) = if label == 0 { ([1, 2, row[2], 99], 3) } else { ([4, 99, 99, 99], 1) };
        assert_eq!((row, mask[example * 4..][..4].iter().sum::<i64>()), (&wanted[..], length));
    }
    assert_eq!(types, [0; 32]);
}

#[test]
fn bytes_that_are_not_utf8_are_latin1() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "t/a/1.txt", b"\xa35 caf\xe9");
    write(folder.path(), "t/b/1.txt", "£5 café");
    write(folder.path(), "u/a/1.txt", "x");
    let text =
        "kind = \"text_folder\"\ntrain = \"@t\"\ntest = \"@u\"\nclasses = 2\npartition = { kind = \"iid\" }";
    let federation = load(folder.path(), text).unwrap();
    let read = std::cell::RefCell::new(Vec::new());
    let note = |text: &str| {
        read.borrow_mut().push(text.to_owned());
        words(text)
    };
    let input = TextInput { tokenize: &note, ..texts(&[TokenColumn::Ids]) };
    for client in 0..2 {
        federation.client(client).unwrap().prepare_texts(&input).unwrap();
    }
    assert_eq!(read.into_inner(), ["£5 café", "£5 café"]);
}

#[test]
fn images_of_any_size_become_squares_in_colour() {
    let folder = TempDir::new().unwrap();
    let red = RgbImage::from_pixel(30, 20, Rgb([255, 0, 0]));
    // Blue on both sides of a green middle, which is what stays.
    let green =
        RgbImage::from_fn(
            40,
            16,
            |x, _| if (12..28).contains(&x) { Rgb([0, 255, 0]) } else { Rgb([0, 0, 255]) },
        );
    for (class, picture) in [("green", green), ("red", red)] {
        for (i, ending) in ["png", "jpeg", "png", "png"].into_iter().enumerate() {
            let path = folder.path().join(format!("p/{class}/{i}.{ending}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            picture.save(path).unwrap();
        }
    }
    let text = "kind = \"image_folder\"\ntrain = \"@p\"\ntest_fraction = 0.25\nclasses = 2\nimage_size = 8\n\
                partition = { kind = \"iid\" }";
    let federation = load(folder.path(), text).unwrap();
    let input = Input::new(&[3, 4, 4], &[0.0; 3], &[1.0; 3]).unwrap();
    let mut seen = HashSet::new();
    for data in
        [federation.client(0), federation.client(1), Some(federation.held_out())].into_iter().flatten()
    {
        let prepared = data.prepare_images(&input).unwrap();
        for index in 0..data.len() {
            let (mut pixels, mut label) = ([0.0; 48], [0]);
            prepared.fill(&[index], &mut [Column::F32(&mut pixels)], Column::I64(&mut label)).unwrap();
            let wanted = if label[0] == 0 { [0.0, 1.0, 0.0] } else { [1.0, 0.0, 0.0] };
            for (plane, wanted) in pixels.chunks(16).zip(wanted) {
                // JPEG rounds colours, and the filter sees a little of the blue.
                assert!(plane.iter().all(|value| (value - wanted).abs() < 0.1), "{label:?} {plane:?}");
            }
            seen.insert(label[0]);
        }
    }
    assert_eq!(seen.len(), 2);
    let gray = Input::new(&[1, 4, 4], &[0.0], &[1.0]).unwrap();
    let data = federation.held_out();
    assert!(matches!(data.prepare_images(&gray), Err(FitError::Channels { channels: 1, .. })));
    assert!(matches!(data.prepare_texts(&texts(&[])), Err(FitError::NotTexts(_))));
}

#[test]
fn tables_and_json_lines_say_the_same() {
    let folder = TempDir::new().unwrap();
    let mut csv = "id,topic,body\n".to_owned();
    let mut jsonl = String::new();
    for i in 0..12 {
        let topic = ["war", "peace", "war"][i % 3];
        csv += &format!("{i},{topic},\"say \"\"{topic}\"\", number\n{i}\"\n");
        jsonl += &format!(
            "{{\"topic\": \"{topic}\", \"body\": \"say \\\"{topic}\\\", number\\n{i}\", \"id\": {i}}}\n\n"
        );
    }
    write(folder.path(), "a.csv", csv);
    write(folder.path(), "a.jsonl", jsonl);
    let load = |kind: &str| {
        let text = format!(
            "kind = \"{kind}\"\ntrain = \"@a.{kind}\"\ntext = \"body\"\nlabel = \"topic\"\nclasses = 2\nseed = 1\n\
             test_fraction = 0.25\npartition = {{ kind = \"dirichlet\", alpha = 5.0 }}"
        );
        load(folder.path(), &text).unwrap()
    };
    let (csv, jsonl) = (load("csv"), load("jsonl"));
    assert_eq!(csv.class_names(), ["peace", "war"]);
    assert_eq!((csv.partition(), csv.table()), (jsonl.partition(), jsonl.table()));
    let fill = |federation: &Federation| {
        let prepared = federation.held_out().prepare_texts(&texts(&[TokenColumn::Ids])).unwrap();
        let (mut ids, mut labels) = ([0; 12], [0; 3]);
        prepared.fill(&[0, 1, 2], &mut [Column::I64(&mut ids)], Column::I64(&mut labels)).unwrap();
        (ids, labels)
    };
    assert_eq!(fill(&csv), fill(&jsonl));
}

#[test]
fn several_labels_are_ones_in_a_row() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "a.csv", "text,label\nx,1|2\nx,\nx,0 | 1\nx,2\n");
    write(
        folder.path(),
        "a.jsonl",
        "{\"text\":\"x\",\"label\":[1,2]}\n{\"text\":\"x\",\"label\":[]}\n\
        {\"text\":\"x\",\"label\":\"0|1\"}\n{\"text\":\"x\",\"label\":2}\n",
    );
    for kind in ["csv", "jsonl"] {
        let text = format!(
            "kind = \"{kind}\"\ntrain = \"@a.{kind}\"\ntest = \"@a.{kind}\"\nlabels = \"multi_label\"\n\
             separator = \"|\"\nclasses = 3\npartition = {{ kind = \"iid\" }}"
        );
        let federation = load(folder.path(), &text).unwrap();
        assert_eq!(federation.label_kind(), LabelKind::MultiLabel(3));
        // By first label, and one example without any.
        assert_eq!(federation.table().totals(), [1, 1, 1, 1]);
        let prepared = federation.held_out().prepare_texts(&texts(&[TokenColumn::Ids])).unwrap();
        let mut rows: Vec<Vec<f32>> = float_labels(&prepared, 3).chunks(3).map(<[f32]>::to_vec).collect();
        rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert_eq!(rows, [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]);
    }
}

#[test]
fn targets_are_real_numbers_and_have_no_classes() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "a.csv", "text,x,y\na,1.5,-2\nb,3,4e-1\n");
    let text = "kind = \"csv\"\ntrain = \"@a.csv\"\ntest = \"@a.csv\"\nlabels = \"regression\"\nlabel = [\"y\", \"x\"]\n";
    let error = load(folder.path(), text).unwrap_err();
    assert!(error.contains("kind = \"iid\""), "{error}");
    let federation = load(folder.path(), &format!("{text}partition = {{ kind = \"iid\" }}")).unwrap();
    assert_eq!(federation.label_kind(), LabelKind::Regression(2));
    let prepared = federation.held_out().prepare_texts(&texts(&[TokenColumn::Ids])).unwrap();
    let mut targets = float_labels(&prepared, 2);
    targets.sort_by(f32::total_cmp);
    assert_eq!(targets, [-2.0, 0.4, 1.5, 3.0]);
}

#[test]
fn a_text_can_be_its_own_label() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "a.jsonl", "{\"text\": \"one three fifteen\"}\n{\"text\": \"a\"}\n");
    let text = "kind = \"jsonl\"\ntrain = \"@a.jsonl\"\ntest = \"@a.jsonl\"\nlabels = \"tokens\"\npartition = { kind = \"iid\" }";
    let federation = load(folder.path(), text).unwrap();
    assert_eq!(federation.label_kind(), LabelKind::Tokens);
    let prepared = federation.held_out().prepare_texts(&texts(&[TokenColumn::Ids])).unwrap();
    let (mut ids, mut labels) = ([0; 8], [0; 8]);
    prepared.fill(&[0, 1], &mut [Column::I64(&mut ids)], Column::I64(&mut labels)).unwrap();
    assert!(ids.iter().zip(labels).all(|(id, label)| label == if *id == 99 { IGNORED } else { *id }));
    assert_eq!(labels.iter().filter(|label| **label == IGNORED).count(), 4);
}

#[test]
fn wrong_rows_are_named_by_line() {
    let folder = TempDir::new().unwrap();
    let refused = |kind: &str, content: &[u8], keys: &str, said: &[&str]| {
        write(folder.path(), "a", content);
        let text = format!("kind = \"{kind}\"\ntrain = \"@a\"\ntest = \"@a\"\nclasses = 2\n{keys}");
        let error = load(folder.path(), &text).unwrap_err();
        let whole = said.iter().all(|part| error.contains(part)) && !error.contains('\n');
        assert!(whole, "{said:?}: {error}");
    };
    let regression = "labels = \"regression\"\nlabel = \"label\"\npartition = { kind = \"iid\" }";
    refused("csv", b"text,label\na,0\nb,2\n", "", &["line 3", "\"2\"", "0..2"]);
    refused("csv", b"text,label\na,0\nb,-1\n", "", &["line 3", "\"-1\""]);
    refused("csv", b"text,label\n\"a\nb\",0\nb\n", "", &["line 4", "1 columns"]);
    refused("csv", b"text,label\na,0\n ,1\n", "", &["line 3", "no text"]);
    refused("csv", b"text,label\na,0\n\xff,1\n", "", &["line 3", "UTF-8"]);
    refused("csv", b"body,label\na,0\n", "", &["line 1", "no column \"text\"", "body, label"]);
    refused("csv", b"text,label\na,x\nb,y\nc,z\n", "", &["3 classes", "classes = 2"]);
    refused("csv", b"text,label\na,x\nb,y\n", "class_names = [\"x\", \"w\"]", &["line 3", "\"y\"", "x, w"]);
    refused("csv", b"text,label\n", "", &["0 examples"]);
    refused("csv", b"", "", &["no column"]);
    refused("csv", b"text,label\na,0\nb,inf\n", regression, &["line 3", "label is \"inf\""]);
    refused(
        "jsonl",
        b"{\"text\": \"a\", \"label\": 0}\n\n{\"text\": 3, \"label\": 0}\n",
        "",
        &["line 3", "no text"],
    );
    refused(
        "jsonl",
        b"{\"text\": \"a\", \"label\": 0}\n{\"text\": \"a\"}\n",
        "",
        &["line 2", "no field \"label\""],
    );
    refused("jsonl", b"[1]\n", "", &["line 1", "no JSON object"]);
    refused("jsonl", b"{\"text\": \"a\", \"label\": 0.5}\n", "", &["line 1", "0.5"]);
    refused("jsonl", b"{\"text\": \"a\", \"label\": \"0.5\"}\n", regression, &["line 1", "no finite number"]);
}

#[test]
fn wrong_folders_are_named() {
    let folder = TempDir::new().unwrap();
    let refused = |kind: &str, keys: &str, said: &str| {
        let text = format!("kind = \"{kind}\"\ntrain = \"@d\"\nclasses = 2\n{keys}");
        let error = load(folder.path(), &text).unwrap_err();
        assert!(error.contains(said) && !error.contains('\n'), "{said}: {error}");
    };
    refused("text_folder", "", "d: cannot be read");
    fs::create_dir(folder.path().join("d")).unwrap();
    refused("text_folder", "", "holds no folder");
    fs::create_dir(folder.path().join("d/a")).unwrap();
    refused("text_folder", "", "holds no example");
    write(folder.path(), "d/a/1", "x");
    refused("text_folder", "", "names 1 classes, but classes = 2");
    write(folder.path(), "d/b/1", " \n");
    refused("text_folder", "", "holds no text");
    write(folder.path(), "d/b/1", "x");
    refused("text_folder", "", "0 held-out examples");
    refused("text_folder", "class_names = [\"a\", \"c\"]", "folder \"b\" is none of the 2 classes a, c");
    refused("image_folder", "", "neither a PNG nor a JPEG");
    write(folder.path(), "d/a/1", b"\x89PNG\r\n\x1a\n broken");
    refused("image_folder", "", "cannot be decoded");
    write(folder.path(), "d/b/inner/1", "x");
    refused("text_folder", "", "inner: is a folder");
    fs::remove_dir_all(folder.path().join("d/b/inner")).unwrap();
    write(folder.path(), "d/c", "x");
    refused("text_folder", "", "is no folder");
}

#[test]
fn texts_that_do_not_fit_are_named() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "a.csv", "text,label\none two,0\nthree,1\n");
    let text =
        "kind = \"csv\"\ntrain = \"@a.csv\"\ntest = \"@a.csv\"\nclasses = 2\npartition = { kind = \"iid\" }";
    let data = load(folder.path(), text).unwrap().held_out();
    let prepare = |length, tokenize: &dyn Fn(&str) -> Result<Vec<u32>, String>| {
        data.prepare_texts(&TextInput { length, tokenize, ..texts(&[TokenColumn::Ids]) }).unwrap_err()
    };
    assert!(matches!(prepare(1, &words), FitError::Length { example: 0, found: 2, length: 1, .. }));
    assert!(matches!(prepare(4, &|_| Ok(Vec::new())), FitError::Length { found: 0, .. }));
    assert!(matches!(prepare(4, &|_| Err("no".to_owned())), FitError::Tokenize { .. }));
    let input = Input::new(&[1, 4, 4], &[0.0], &[1.0]).unwrap();
    assert!(matches!(data.prepare_images(&input), Err(FitError::NotImages(_))));
    let asked = spec(folder.path(), &format!("{text}\n")).clone();
    let error = Federation::load(&DataSpec { eval_examples: 3, ..asked }).unwrap_err();
    assert!(matches!(error, DataError::HeldOut { asked: 3, available: 2, .. }), "{error}");
}
