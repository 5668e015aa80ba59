//! Vocabularies from Hugging Face files: every key against llama.cpp's own conversions, tokenization by
//! libllama against the `tokenizers` library, and bad files.

use std::fs;
use std::path::{Path, PathBuf};

use moqa::gguf::{DEFAULT_VERSION, Gguf, GgufLayout, GgufWriter, Metadata, Value};
use moqa::hf::vocab::{VocabOptions, metadata};
use moqa::runtime::{Model, ModelOptions};
use serde_json::{Value as Json, json};
use tokenizers::Tokenizer;

/// The shared test models, if this machine has them.
fn shared() -> Option<PathBuf> {
    let shared = std::env::var_os("MOQA_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    if shared.join("oracle").is_dir() {
        return Some(shared);
    }
    println!("skipped: no test models in {}", shared.display());
    None
}

fn read_json(path: &Path) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn convert(dir: &Path) -> anyhow::Result<Vec<(String, Value)>> {
    let config = read_json(&dir.join("config.json"));
    metadata(dir, &config, &VocabOptions::default())
}

fn get<'a>(keys: &'a [(String, Value)], key: &str) -> Option<&'a Value> {
    keys.iter().find(|(k, _)| k == key).map(|(_, v)| v)
}

/// A model of the vocabulary alone, loaded by libllama.
fn load(keys: Vec<(String, Value)>, dir: &Path) -> Model {
    let mut meta = Metadata::new();
    meta.set("general.architecture", "llama");
    for (key, value) in keys {
        meta.set(key, value);
    }
    let layout = GgufLayout::new(&meta, Vec::new(), DEFAULT_VERSION).unwrap();
    let writer = GgufWriter::new(Vec::new(), &layout).unwrap();
    let path = dir.join("vocab.gguf");
    fs::write(&path, writer.finish().unwrap()).unwrap();
    let options = ModelOptions {
        vocab_only: true,
        ..ModelOptions::default()
    };
    Model::load(&path, &options).unwrap()
}

#[test]
fn every_key_is_the_one_that_llama_cpp_writes() {
    let Some(shared) = shared() else { return };
    let mut dirs: Vec<PathBuf> = fs::read_dir(shared.join("oracle"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    dirs.push(shared.join("lab-moe"));
    dirs.sort();
    let mut compared = 0;
    for dir in dirs {
        let reference = Gguf::open(dir.join("reference-bf16.gguf")).unwrap();
        let wanted: Vec<(&str, &Value)> = reference
            .metadata
            .iter()
            .filter(|(key, _)| key.starts_with("tokenizer."))
            .collect();
        let keys = convert(&dir).unwrap();
        let names: Vec<&str> = keys.iter().map(|(k, _)| k.as_str()).collect();
        let wanted_names: Vec<&str> = wanted.iter().map(|&(k, _)| k).collect();
        assert_eq!(names, wanted_names, "{}", dir.display());
        for ((key, value), (_, wanted)) in keys.iter().zip(wanted) {
            assert!(value == wanted, "{}: {key} differs", dir.display());
        }
        compared += 1;
    }
    assert!(compared >= 15, "only {compared} models");
}

/// A small generator, so that the texts are the same every time.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Two thousand texts and more: files in pieces, and mixtures of scripts, signs and white space.
fn texts(shared: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for part in ["calib", "heldout"] {
        let mut files: Vec<PathBuf> = fs::read_dir(shared.join("text").join(part))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        files.sort();
        for file in files {
            let text = fs::read_to_string(file).unwrap();
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let mut at = rest.len().min(800);
                while !rest.is_char_boundary(at) {
                    at += 1;
                }
                texts.push(rest[..at].to_owned());
                rest = &rest[at..];
            }
        }
    }
    let parts = [
        "hello",
        "World",
        "don't",
        "I'LL",
        "we've",
        "IT'S",
        "naïve",
        "façade",
        "Ångström",
        "straße",
        "ﬁ",
        "1",
        "42",
        "1234567",
        "3.14",
        "½",
        "²",
        "٣٤",
        "१२",
        "一二三",
        "日本語のテキスト",
        "カタカナ",
        "ｶﾀｶﾅ",
        "中文文本。",
        "，",
        "、",
        "「引用」",
        "한국어",
        "가나다",
        "ไทย",
        "ภาษาไทย",
        "हिन्दी",
        "বাংলা",
        "தமிழ்",
        "עברית",
        "שָׁלוֹם",
        "العربية",
        "مُحَمَّد",
        "\u{200f}",
        "\u{200e}",
        "\u{202b}x\u{202c}",
        "Русский",
        "нещо",
        "Ελληνικά",
        "ქართული",
        "Հայերեն",
        "😀",
        "👩‍👩‍👧‍👦",
        "🏳️‍🌈",
        "🇩🇪",
        "👍🏽",
        "😶\u{200d}🌫️",
        "e\u{301}",
        "a\u{30a}\u{323}",
        " ",
        "  ",
        "   ",
        "       ",
        "\t",
        "\t\t",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        " \n ",
        "\n  ",
        "\u{a0}",
        "\u{3000}",
        "\u{2003}",
        "\u{b}",
        "\u{c}",
        "\u{85}",
        "\u{2028}",
        "\u{200b}",
        "\u{feff}",
        "!",
        "?!",
        "...",
        "(",
        ")",
        "[]",
        "{}",
        "<>",
        "</div>",
        "#",
        "$",
        "€",
        "%",
        "^",
        "&",
        "*",
        "_",
        "__init__",
        "-",
        "--",
        "=>",
        "+=",
        "`",
        "```",
        "~",
        "'",
        "''",
        "\"",
        "\\",
        "/",
        "//",
        "|",
        "||",
        ";",
        ":",
        ",",
        "@",
        "https://x.y/z?a=b&c=d",
        "CamelCaseWord",
        "snake_case",
        "ALLCAPS",
        "\u{0}",
        "\u{1}",
        "\u{7f}",
        "\u{fffd}",
        "\u{e000}",
        "\u{10ffff}",
        "𝔘𝔫𝔦",
        "𐐀𐐨",
        "ǅ",
        "ʰ",
        "▁",
        "Ġ",
        "<|endoftext|>",
        "<|im_start|>",
        "<s>",
        "</s>",
        "<unk>",
        "<0x0A>",
        "[PAD3]",
    ];
    let mut random = Lcg(7);
    for part in parts {
        texts.push(part.to_owned());
        texts.push(format!(" {part}"));
        texts.push(format!("{part} {part}\n{part}"));
    }
    for _ in 0..900 {
        let n = 2 + random.below(24);
        let spaced = random.below(2) == 0;
        let mut text = String::new();
        for _ in 0..n {
            text.push_str(parts[random.below(parts.len())]);
            if spaced {
                text.push(' ');
            }
        }
        texts.push(text);
    }
    for n in 0..64 {
        texts.push(" ".repeat(n));
        texts.push(format!(
            "{}x{}\n{}y",
            " ".repeat(n),
            "\t".repeat(n % 7),
            "\n".repeat(n % 5)
        ));
    }
    assert!(texts.len() > 2000, "{}", texts.len());
    texts
}

/// The texts that libllama and the `tokenizers` library tokenize differently.
fn differing<'t>(model: &Model, tokenizer: &Tokenizer, texts: &'t [String]) -> Vec<&'t str> {
    let vocab = model.vocab();
    texts
        .iter()
        .filter(|text| {
            let wanted = tokenizer.encode(text.as_str(), false).unwrap();
            let wanted: Vec<i32> = wanted.get_ids().iter().map(|&id| id as i32).collect();
            vocab.tokenize(text, false, true).unwrap() != wanted
        })
        .map(String::as_str)
        .collect()
}

fn show(texts: &[&str]) -> String {
    let shown: Vec<String> = texts
        .iter()
        .take(12)
        .map(|t| format!("{:?}", t.chars().take(200).collect::<String>()))
        .collect();
    format!("{} texts differ, as {}", texts.len(), shown.join("\n"))
}

#[test]
fn byte_level_tokenization_is_that_of_the_tokenizers_library() {
    let Some(shared) = shared() else { return };
    let texts = texts(&shared);
    for name in ["lab-moe", "oracle/mixtral"] {
        let dir = shared.join(name);
        let scratch = tempfile::tempdir().unwrap();
        let model = load(convert(&dir).unwrap(), scratch.path());
        let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
        let bad = differing(&model, &tokenizer, &texts);
        assert!(bad.is_empty(), "{name}: {}", show(&bad));
    }
}

fn split(expression: &str) -> Json {
    json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false})
}

/// A copy of the lab model's tokenizer with another pre-tokenizer.
fn with_pre_tokenizer(shared: &Path, dir: &Path, pre_tokenizer: Json, ignore_merges: bool) {
    let lab = shared.join("lab-moe");
    let mut tokenizer = read_json(&lab.join("tokenizer.json"));
    tokenizer["pre_tokenizer"] = pre_tokenizer;
    tokenizer["model"]["ignore_merges"] = ignore_merges.into();
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    for file in ["config.json", "tokenizer_config.json"] {
        fs::copy(lab.join(file), dir.join(file)).unwrap();
    }
}

#[test]
fn other_pre_tokenizers_split_as_the_tokenizers_library_does() {
    let Some(shared) = shared() else { return };
    let texts = texts(&shared);
    let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let qwen35 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let gpt4o = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let deepseek3 = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
    let bailing = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
    let plain = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let regex = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let sequence = |steps: Vec<Json>| json!({"type": "Sequence", "pretokenizers": steps});
    // The most texts that may differ. Where libllama has no implementation of its own for an expression it
    // approximates Unicode classes: marks are no letters for "gpt-4o", and white space other than ASCII's is
    // one character for "deepseek-coder".
    let cases = [
        ("gpt-2", false, 0, regex.clone()),
        (
            "starcoder",
            false,
            0,
            sequence(vec![digits.clone(), regex.clone()]),
        ),
        (
            "llama-bpe",
            true,
            0,
            sequence(vec![split(llama3), plain.clone()]),
        ),
        (
            "dbrx",
            false,
            0,
            sequence(vec![split(llama3), plain.clone()]),
        ),
        (
            "qwen35",
            false,
            0,
            sequence(vec![split(qwen35), plain.clone()]),
        ),
        (
            "gpt-4o",
            false,
            5,
            sequence(vec![split(gpt4o), plain.clone()]),
        ),
        (
            "deepseek-v3",
            false,
            0,
            sequence(vec![
                split(r"\p{N}{1,3}"),
                split("[一-龥぀-ゟ゠-ヿ]+"),
                split(deepseek3),
                plain.clone(),
            ]),
        ),
        (
            "deepseek-coder",
            false,
            100,
            sequence(vec![
                split("[\r\n]"),
                split(r"\s?\p{L}+"),
                split(r"\s?\p{P}+"),
                split("[一-龥ࠀ-一가-퟿]+"),
                digits.clone(),
                plain.clone(),
            ]),
        ),
        (
            "bailingmoe",
            false,
            0,
            sequence(vec![split(bailing), plain.clone()]),
        ),
    ];
    for (name, ignore_merges, limit, pre_tokenizer) in cases {
        let dir = tempfile::tempdir().unwrap();
        with_pre_tokenizer(&shared, dir.path(), pre_tokenizer, ignore_merges);
        let keys = convert(dir.path()).unwrap();
        assert_eq!(
            get(&keys, "tokenizer.ggml.pre").unwrap().as_str(),
            Some(name)
        );
        let model = load(keys, dir.path());
        let tokenizer = Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        let bad = differing(&model, &tokenizer, &texts);
        assert!(bad.len() <= limit, "{name}: {}", show(&bad));
    }
}

/// A `tokenizer.json` as the `transformers` library makes it of a SentencePiece BPE model: a merge for every
/// way to make a piece of two others, in order of score.
fn json_of_sentencepiece(reference: &Gguf) -> Json {
    let array = |key: &str| reference.metadata.get_array(key).unwrap();
    let pieces: Vec<String> = array("tokenizer.ggml.tokens")
        .as_strings()
        .unwrap()
        .iter()
        .map(|s| String::from_utf8(s.to_vec()).unwrap())
        .collect();
    let scores = array("tokenizer.ggml.scores").to_f64s().unwrap();
    let types = array("tokenizer.ggml.token_type").to_u64s().unwrap();
    let id = |piece: &str| pieces.iter().position(|p| p == piece);
    let mut merges: Vec<(f64, usize, usize)> = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        if types[i] != 1 {
            continue;
        }
        let mut splits: Vec<(usize, usize)> = piece
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((id(&piece[..at])?, id(&piece[at..])?)))
            .collect();
        splits.sort();
        merges.extend(splits.into_iter().map(|(a, b)| (scores[i], a, b)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    let merges: Vec<[&str; 2]> = merges
        .iter()
        .map(|&(_, a, b)| [pieces[a].as_str(), pieces[b].as_str()])
        .collect();
    let vocab: serde_json::Map<String, Json> = pieces
        .iter()
        .enumerate()
        .map(|(i, p)| (p.clone(), i.into()))
        .collect();
    let added: Vec<Json> = pieces[..3]
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": merges}
    })
}

#[test]
fn sentencepiece_tokenization_is_that_of_the_tokenizers_library() {
    let Some(shared) = shared() else { return };
    let texts = texts(&shared);
    let dir = shared.join("oracle/mixtral_spm");
    let reference = Gguf::open(dir.join("reference-bf16.gguf")).unwrap();
    let json = json_of_sentencepiece(&reference);
    let tokenizer: Tokenizer = json.to_string().parse().unwrap();

    // From tokenizer.model.
    let scratch = tempfile::tempdir().unwrap();
    let from_model = convert(&dir).unwrap();
    let model = load(from_model.clone(), scratch.path());
    let bad = differing(&model, &tokenizer, &texts);
    assert!(bad.is_empty(), "tokenizer.model: {}", show(&bad));

    // From the tokenizer.json alone: other scores, but the same merges.
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("tokenizer.json"), json.to_string()).unwrap();
    for file in ["config.json", "tokenizer_config.json"] {
        fs::copy(dir.join(file), scratch.path().join(file)).unwrap();
    }
    let from_json = convert(scratch.path()).unwrap();
    for key in [
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.add_bos_token",
    ] {
        assert_eq!(get(&from_json, key), get(&from_model, key), "{key}");
    }
    assert!(get(&from_json, "tokenizer.ggml.add_space_prefix").is_none());
    let model = load(from_json, scratch.path());
    let bad = differing(&model, &tokenizer, &texts);
    assert!(bad.is_empty(), "tokenizer.json: {}", show(&bad));
    let text = "The beginning of a text";
    let wanted: Vec<i32> = tokenizer
        .encode(text, true)
        .unwrap()
        .get_ids()
        .iter()
        .map(|&i| i as i32)
        .collect();
    assert_eq!(model.vocab().tokenize(text, true, true).unwrap(), wanted);
    assert_eq!(wanted[0], 1);
}

#[test]
fn a_sentencepiece_tokenizer_without_a_prefix_says_so() {
    let Some(shared) = shared() else { return };
    let dir = shared.join("oracle/mixtral_spm");
    let reference = Gguf::open(dir.join("reference-bf16.gguf")).unwrap();
    let mut json = json_of_sentencepiece(&reference);
    json["normalizer"] = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("tokenizer.json"), json.to_string()).unwrap();
    fs::copy(dir.join("config.json"), scratch.path().join("config.json")).unwrap();
    let keys = convert(scratch.path()).unwrap();
    assert_eq!(
        keys.last().unwrap(),
        &(
            "tokenizer.ggml.add_space_prefix".to_owned(),
            Value::Bool(false)
        )
    );
    let model = load(keys, scratch.path());
    let tokenizer: Tokenizer = json.to_string().parse().unwrap();
    let texts = texts(&shared);
    let bad = differing(&model, &tokenizer, &texts);
    assert!(bad.is_empty(), "{}", show(&bad));
}

#[test]
fn a_wrong_pre_tokenizer_shows() {
    let Some(shared) = shared() else { return };
    let dir = shared.join("lab-moe");
    let options = VocabOptions {
        pre_tokenizer: Some("gpt-2".to_owned()),
    };
    let keys = metadata(&dir, &read_json(&dir.join("config.json")), &options).unwrap();
    assert_eq!(
        get(&keys, "tokenizer.ggml.pre").unwrap().as_str(),
        Some("gpt-2")
    );
    let scratch = tempfile::tempdir().unwrap();
    let model = load(keys, scratch.path());
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    assert!(differing(&model, &tokenizer, &texts(&shared)).len() > 100);
}

/// A small byte-level tokenizer: the alphabet of bytes, two merges and two added tokens (258, 259).
fn small() -> Json {
    let mut vocab = serde_json::Map::new();
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let alphabet = (0..256)
        .filter(|&b| printable(b))
        .chain(256..256 + (0..256).filter(|&b| !printable(b)).count() as u32);
    for c in alphabet {
        vocab.insert(char::from_u32(c).unwrap().to_string(), vocab.len().into());
    }
    vocab.insert("ab".into(), 256.into());
    vocab.insert("Ġab".into(), 257.into());
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            {"id": 258, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
            {"id": 259, "content": "▁tool", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": true, "special": false}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", "Ġ ab"]}
    })
}

/// Writes the files of a model and converts.
fn convert_files(
    tokenizer: &Json,
    tokenizer_config: &Json,
    config: &Json,
) -> anyhow::Result<Vec<(String, Value)>> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    if !tokenizer_config.is_null() {
        let path = dir.path().join("tokenizer_config.json");
        fs::write(path, tokenizer_config.to_string()).unwrap();
    }
    metadata(dir.path(), config, &VocabOptions::default())
}

fn strings(keys: &[(String, Value)], key: &str) -> Vec<String> {
    let array = get(keys, key).unwrap().as_array().unwrap();
    let strings = array.as_strings().unwrap();
    strings
        .iter()
        .map(|s| String::from_utf8(s.to_vec()).unwrap())
        .collect()
}

#[test]
fn added_tokens_padding_and_merges_are_as_the_converter_writes_them() {
    let config =
        json!({"vocab_size": 263, "eos_token_id": 258, "pad_token_id": -1, "bos_token_id": [1, 2]});
    let keys = convert_files(&small(), &Json::Null, &config).unwrap();
    let tokens = strings(&keys, "tokenizer.ggml.tokens");
    assert_eq!(
        &tokens[256..],
        [
            "ab", "Ġab", "<|end|>", " tool", "[PAD260]", "[PAD261]", "[PAD262]"
        ]
    );
    let types = get(&keys, "tokenizer.ggml.token_type").unwrap();
    let types = types.as_array().unwrap().to_u64s().unwrap();
    assert_eq!(&types[256..], [1, 1, 3, 4, 5, 5, 5]);
    assert_eq!(strings(&keys, "tokenizer.ggml.merges"), ["a b", "Ġ ab"]);
    assert_eq!(
        get(&keys, "tokenizer.ggml.eos_token_id"),
        Some(&Value::U32(258))
    );
    assert!(get(&keys, "tokenizer.ggml.padding_token_id").is_none());
    assert!(get(&keys, "tokenizer.ggml.bos_token_id").is_none());

    // Without a vocabulary size there is no padding; merges may be pairs; spaces in them are encoded.
    let mut pairs = small();
    pairs["model"]["vocab"]["a b"] = 260.into();
    pairs["model"]["vocab"][" b"] = 261.into();
    pairs["added_tokens"] = json!([]);
    for id in [258, 259] {
        pairs["model"]["vocab"][format!("x{id}")] = id.into();
    }
    pairs["model"]["merges"] = json!([["a", "b"], ["Ġ", "ab"], ["a", " b"]]);
    let keys = convert_files(&pairs, &Json::Null, &json!({})).unwrap();
    assert_eq!(strings(&keys, "tokenizer.ggml.tokens").len(), 262);
    assert_eq!(
        strings(&keys, "tokenizer.ggml.merges"),
        ["a b", "Ġ ab", "a Ġb"]
    );

    // What tokenizer_config.json says of a token prevails, and it may name special ones.
    let tokenizer_config = json!({
        "added_tokens_decoder": {"259": {"content": "▁tool", "special": true, "normalized": false}},
        "eos_token": "<|end|>", "unk_token": {"content": "ab"}, "pad_token": "[more]"});
    let keys = convert_files(&small(), &tokenizer_config, &json!({"vocab_size": 261})).unwrap();
    let tokens = strings(&keys, "tokenizer.ggml.tokens");
    assert_eq!(&tokens[256..], ["ab", "Ġab", "<|end|>", "▁tool", "[more]"]);
    let types = get(&keys, "tokenizer.ggml.token_type").unwrap();
    let types = types.as_array().unwrap().to_u64s().unwrap();
    assert_eq!(&types[256..], [3, 1, 3, 3, 3]);
}

#[test]
fn special_tokens_and_flags_follow_the_post_processor() {
    let mut tokenizer = small();
    tokenizer["added_tokens"][1]["content"] = "<s>".into();
    tokenizer["added_tokens"][1]["special"] = true.into();
    let template = |single: Json| {
        json!({"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false},
        {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}]})
    };
    let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let flags = |tokenizer: &Json, tokenizer_config: Json| {
        let keys = convert_files(tokenizer, &tokenizer_config, &json!({})).unwrap();
        keys.into_iter()
            .filter(|(k, _)| k.contains("_token_id") || k.contains("add_"))
            .map(|(k, v)| format!("{}={v:?}", k.trim_start_matches("tokenizer.ggml.")))
            .collect::<Vec<_>>()
    };
    // ByteLevel alone adds nothing.
    tokenizer["post_processor"] = json!({"type": "ByteLevel", "trim_offsets": false});
    assert_eq!(
        flags(
            &tokenizer,
            json!({"bos_token": "<s>", "eos_token": "<|end|>"})
        ),
        [
            "bos_token_id=U32(259)",
            "eos_token_id=U32(258)",
            "add_bos_token=Bool(false)",
            "add_eos_token=Bool(false)"
        ]
    );
    // A template with a token in front; tokenizer_config.json does not prevail over it.
    tokenizer["post_processor"] = template(json!([special("<s>"), text]));
    assert_eq!(
        flags(
            &tokenizer,
            json!({"bos_token": "<s>", "add_bos_token": false, "add_eos_token": true})
        ),
        [
            "bos_token_id=U32(259)",
            "add_bos_token=Bool(true)",
            "add_eos_token=Bool(false)"
        ]
    );
    // A last token that is not the one called EOS becomes EOS, and the other the end of a turn.
    tokenizer["post_processor"] = template(json!([text, special("<s>")]));
    assert_eq!(
        flags(&tokenizer, json!({"eos_token": "<|end|>"})),
        [
            "eos_token_id=U32(259)",
            "eot_token_id=U32(258)",
            "add_bos_token=Bool(false)",
            "add_eos_token=Bool(true)"
        ]
    );
    // Nothing but tokenizer_config.json.
    tokenizer["post_processor"] = Json::Null;
    assert_eq!(
        flags(
            &tokenizer,
            json!({"bos_token": "<s>", "add_bos_token": true})
        ),
        ["bos_token_id=U32(259)", "add_bos_token=Bool(true)"]
    );
}

#[test]
fn chat_templates_are_found_where_the_converter_finds_them() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let templates = || {
        let keys = metadata(dir.path(), &json!({}), &VocabOptions::default()).unwrap();
        keys.into_iter()
            .filter(|(k, _)| k.starts_with("tokenizer.chat"))
            .map(|(k, v)| match v {
                Value::Str(s) => format!("{}={s}", k.trim_start_matches("tokenizer.")),
                other => format!("{}={other:?}", k.trim_start_matches("tokenizer.")),
            })
            .collect::<Vec<_>>()
    };
    write("tokenizer.json", &small().to_string());
    write("chat_template.json", r#"{"chat_template": "J"}"#);
    assert!(
        templates().is_empty(),
        "the converter wants a tokenizer_config.json"
    );
    write("tokenizer_config.json", r#"{"eos_token": "<|end|>"}"#);
    assert_eq!(templates(), ["chat_template=J"]);
    write("chat_template.jinja", "T");
    assert_eq!(templates(), ["chat_template=T"]);
    fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool-use.jinja", "U");
    assert_eq!(
        templates(),
        [
            "chat_template.tool_use=U",
            "chat_templates=Array(Str([\"tool_use\"]))",
            "chat_template=T"
        ]
    );
    write("tokenizer_config.json", r#"{"chat_template": "C"}"#);
    assert_eq!(templates(), ["chat_template=C"]);
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]}"#,
    );
    assert_eq!(
        templates(),
        [
            "chat_template.rag=R",
            "chat_templates=Array(Str([\"rag\"]))",
            "chat_template=D"
        ]
    );
    write("tokenizer_config.json", r#"{"chat_template": null}"#);
    assert!(templates().is_empty());
}

#[test]
fn glm_models_name_their_turns() {
    let mut tokenizer = small();
    let config = json!({"architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "eos_token_id": 258});
    let added = |texts: &[&str]| -> Json {
        (258..)
            .zip(texts)
            .map(|(id, t)| json!({"id": id, "content": t, "special": true, "normalized": false}))
            .collect()
    };
    tokenizer["added_tokens"] = added(&["<|endoftext|>", "[gMASK]", "<|user|>", "<|observation|>"]);
    let keys = convert_files(&tokenizer, &Json::Null, &config).unwrap();
    let ids: Vec<(&str, u64)> = keys
        .iter()
        .filter(|(k, _)| k.ends_with("_token_id"))
        .map(|(k, v)| (k.trim_start_matches("tokenizer.ggml."), v.as_u64().unwrap()))
        .collect();
    let wanted = [
        ("eos_token_id", 258),
        ("bos_token_id", 259),
        ("eot_token_id", 260),
        ("unknown_token_id", 258),
        ("eom_token_id", 261),
    ];
    assert_eq!(ids, wanted);
    tokenizer["added_tokens"] = added(&["<|endoftext|>", "[gMASK]"]);
    let e = convert_files(&tokenizer, &Json::Null, &config)
        .unwrap_err()
        .to_string();
    assert!(e.contains("<|user|>"), "{e}");
}

#[test]
fn bad_tokenizer_files_are_refused_with_file_and_field() {
    let edit = |f: &dyn Fn(&mut Json)| {
        let mut t = small();
        f(&mut t);
        t
    };
    let none = Json::Null;
    let any = json!({});
    let cases: Vec<(Json, Json, Json, &str)> = vec![
        (
            edit(&|t| t["model"]["vocab"] = json!([])),
            none.clone(),
            any.clone(),
            "tokenizer.json: field `model.vocab` is an array",
        ),
        (
            edit(&|t| t["model"]["vocab"] = json!({})),
            none.clone(),
            any.clone(),
            "`model.vocab` is empty",
        ),
        (
            edit(&|t| t["model"]["vocab"]["b"] = 3.into()),
            none.clone(),
            any.clone(),
            "the id 3",
        ),
        (
            edit(&|t| t["model"]["vocab"]["b"] = (-3).into()),
            none.clone(),
            any.clone(),
            "the id -3",
        ),
        (
            edit(&|t| t["model"]["vocab"]["b"] = 1.5.into()),
            none.clone(),
            any.clone(),
            "the id 1.5",
        ),
        (
            edit(&|t| t["model"]["vocab"]["b"] = u64::MAX.into()),
            none.clone(),
            any.clone(),
            "ids are integers from 0",
        ),
        (
            edit(&|t| t["model"] = json!("BPE")),
            none.clone(),
            any.clone(),
            "field `model` is a string",
        ),
        (
            edit(&|t| t["model"] = none.clone()),
            none.clone(),
            any.clone(),
            "field `model` is missing",
        ),
        (
            edit(&|t| t["model"]["type"] = "WordPiece".into()),
            none.clone(),
            any.clone(),
            "`model.type` is WordPiece",
        ),
        (
            edit(&|t| t["model"]["merges"] = json!([])),
            none.clone(),
            any.clone(),
            "`model.merges` is empty",
        ),
        (
            edit(&|t| t["model"]["merges"] = json!(["a b", "ab"])),
            none.clone(),
            any.clone(),
            "`model.merges[1]`",
        ),
        (
            edit(&|t| t["model"]["merges"] = json!([["a", "b", "c"]])),
            none.clone(),
            any.clone(),
            "`model.merges[0]`",
        ),
        (
            edit(&|t| t["model"]["merges"] = json!([1])),
            none.clone(),
            any.clone(),
            "`model.merges[0]`",
        ),
        (
            edit(&|t| t["model"]["merges"] = json!(["b a"])),
            none.clone(),
            any.clone(),
            "no token \"ba\"",
        ),
        (
            edit(&|t| t["added_tokens"][1]["id"] = 300.into()),
            none.clone(),
            any.clone(),
            "`added_tokens[1]` gives \"▁tool\" the id 300, but the next free id is 259",
        ),
        (
            edit(&|t| t["added_tokens"][1]["content"] = "ab".into()),
            none.clone(),
            any.clone(),
            "its id is 256",
        ),
        (
            edit(&|t| t["added_tokens"][1]["content"] = 1.into()),
            none.clone(),
            any.clone(),
            "`added_tokens[1].content` is a number",
        ),
        (
            edit(&|t| t["added_tokens"][1]["special"] = "yes".into()),
            none.clone(),
            any.clone(),
            "`added_tokens[1].special` is a string",
        ),
        (
            edit(&|t| {
                t["added_tokens"][1].as_object_mut().unwrap().remove("id");
            }),
            none.clone(),
            any.clone(),
            "`added_tokens[1].id` is missing",
        ),
        (
            edit(&|t| t["added_tokens"] = json!({})),
            none.clone(),
            any.clone(),
            "`added_tokens` is an object",
        ),
        (
            edit(&|t| {
                t["added_tokens"][0]["content"] = " tool".into();
                t["added_tokens"][0]["special"] = false.into();
            }),
            none.clone(),
            any.clone(),
            "tokens 258 and 259 have the same text",
        ),
        (
            edit(&|t| t["decoder"] = json!({"type": "WordPiece"})),
            none.clone(),
            any.clone(),
            "`decoder` is of type WordPiece",
        ),
        (
            edit(&|t| t["pre_tokenizer"] = json!({"type": "Whitespace"})),
            none.clone(),
            any.clone(),
            "--pre-tokenizer",
        ),
        (
            edit(&|t| t["post_processor"] = json!({"type": "TemplateProcessing", "single": 3})),
            none.clone(),
            any.clone(),
            "`post_processor.single` is a number",
        ),
        (
            small(),
            json!({"eos_token": 3}),
            any.clone(),
            "tokenizer_config.json: field `eos_token`",
        ),
        (
            small(),
            json!({"add_bos_token": "yes"}),
            any.clone(),
            "`add_bos_token` is a string",
        ),
        (
            small(),
            json!({"add_bos_token": true}),
            any.clone(),
            "`bos_token`",
        ),
        (
            small(),
            json!({"chat_template": 3}),
            any.clone(),
            "`chat_template` is a number",
        ),
        (
            small(),
            json!({"chat_template": [{"name": 3}]}),
            any.clone(),
            "`chat_template[0].name`",
        ),
        (
            small(),
            json!({"added_tokens_decoder": {"x": {}}}),
            any.clone(),
            "the key \"x\"",
        ),
        (
            small(),
            json!({"added_tokens_decoder": {"3": {}}}),
            any.clone(),
            "`added_tokens_decoder.3.content` is missing",
        ),
        (
            small(),
            none.clone(),
            json!({"vocab_size": 100}),
            "`vocab_size` in config.json is 100",
        ),
        (
            small(),
            none.clone(),
            json!({"vocab_size": u64::MAX}),
            "config.json: field `vocab_size`",
        ),
        (
            small(),
            none.clone(),
            json!({"vocab_size": "many"}),
            "config.json: field `vocab_size`",
        ),
        (
            small(),
            none.clone(),
            json!({"eos_token_id": -2}),
            "config.json: field `eos_token_id`",
        ),
        (
            small(),
            none.clone(),
            json!({"eos_token_id": "end"}),
            "config.json: field `eos_token_id`",
        ),
    ];
    for (tokenizer, tokenizer_config, config, wanted) in cases {
        match convert_files(&tokenizer, &tokenizer_config, &config) {
            Ok(_) => panic!("accepted, though {wanted:?} was expected"),
            Err(e) => assert!(format!("{e:#}").contains(wanted), "{e:#} lacks {wanted:?}"),
        }
    }
}

#[test]
fn unreadable_tokenizers_are_refused_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let error = || {
        let config = json!({"architectures": ["MixtralForCausalLM"]});
        let result = metadata(dir.path(), &config, &VocabOptions::default());
        result.unwrap_err().to_string()
    };
    assert!(error().contains("neither tokenizer.json nor tokenizer.model"));
    let text = small().to_string();
    let path = dir.path().join("tokenizer.json");
    for (bytes, wanted) in [
        (
            text.as_bytes()[..text.len() / 2].to_vec(),
            "tokenizer.json: not valid JSON",
        ),
        (b"[]".to_vec(), "tokenizer.json: holds an array"),
        (
            b"{\"a\": \"\xff\"}".to_vec(),
            "tokenizer.json: not valid JSON",
        ),
        (
            "[".repeat(100_000).into_bytes(),
            "tokenizer.json: not valid JSON",
        ),
        (b"{}".to_vec(), "tokenizer.json: field `model` is missing"),
        (vec![], "tokenizer.json: not valid JSON"),
    ] {
        fs::write(&path, bytes).unwrap();
        assert!(error().contains(wanted), "{}", error());
    }
    fs::write(&path, &text).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
    assert!(error().contains("tokenizer_config.json: not valid JSON"));
    fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    fs::write(dir.path().join("tokenizer.model"), "aGVsbG8= 0\n").unwrap();
    assert!(error().contains("tokenizer.model: not a usable SentencePiece model"));
    fs::remove_file(dir.path().join("tokenizer.model")).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"a": 1}"#).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), b"a\xffb").unwrap();
    assert!(error().contains("chat_template.jinja: not UTF-8 at byte 1"));
}

/// A third of the time cut short, else with one byte changed.
fn damage(good: &[u8], random: &mut Lcg) -> Vec<u8> {
    let mut bytes = good.to_vec();
    if random.below(3) == 0 {
        bytes.truncate(random.below(good.len()));
    } else {
        bytes[random.below(good.len())] = random.below(256) as u8;
    }
    bytes
}

/// Converts damaged files: an error, or a vocabulary that libllama loads and tokenizes with. Returns how many
/// were refused and how many converted.
fn convert_damaged(good: &[u8], name: &str, config: &Json, n: usize) -> (usize, usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Lcg(3);
    let (mut refused, mut converted) = (0, 0);
    for _ in 0..n {
        fs::write(dir.path().join(name), damage(good, &mut random)).unwrap();
        match metadata(dir.path(), config, &VocabOptions::default()) {
            Ok(keys) => {
                let model = load(keys, dir.path());
                let text = "A text, <|end|> with <s>▁\u{e000}\u{10ffff} 日本語\n\n\0";
                model.vocab().tokenize(text, true, true).unwrap();
                converted += 1;
            }
            Err(_) => refused += 1,
        }
    }
    (refused, converted)
}

#[test]
fn damaged_tokenizers_are_refused_or_harmless() {
    let json = small().to_string();
    let (refused, converted) = convert_damaged(
        json.as_bytes(),
        "tokenizer.json",
        &json!({"vocab_size": 300}),
        1500,
    );
    assert!(
        refused > 500 && converted > 50,
        "{refused} refused, {converted} converted"
    );
    let Some(shared) = shared() else { return };
    let from = shared.join("oracle/mixtral_spm");
    let model = fs::read(from.join("tokenizer.model")).unwrap();
    let config = read_json(&from.join("config.json"));
    let (refused, converted) = convert_damaged(&model, "tokenizer.model", &config, 1500);
    assert!(
        refused > 500 && converted > 50,
        "{refused} refused, {converted} converted"
    );
}

#[test]
fn a_sentencepiece_model_takes_no_pre_tokenizer() {
    let Some(shared) = shared() else { return };
    let dir = shared.join("oracle/mixtral_spm");
    let options = VocabOptions {
        pre_tokenizer: Some("qwen2".to_owned()),
    };
    let e = metadata(&dir, &read_json(&dir.join("config.json")), &options).unwrap_err();
    assert!(e.to_string().contains("--pre-tokenizer qwen2"), "{e}");
}

#[test]
fn unigram_vocabularies_keep_scores_and_types() {
    let mut pieces = vec![
        json!(["<unk>", 0.0]),
        json!(["<s>", 0.0]),
        json!(["</s>", 0.0]),
    ];
    pieces.extend((0..256).map(|b| json!([format!("<0x{b:02X}>"), 0.0])));
    pieces.push(json!(["▁a", -1.5]));
    pieces.push(json!(["▁end", -2.5]));
    let mut tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            {"id": 1, "content": "<s>", "special": true, "normalized": false},
            {"id": 260, "content": "▁end", "special": false, "normalized": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false},
        "post_processor": null, "decoder": null,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": pieces}});
    let config = |architecture: &str| json!({"architectures": [architecture], "vocab_size": 263});
    let tokenizer_config = json!({"add_prefix_space": true, "bos_token": "<s>"});
    let keys = convert_files(
        &tokenizer,
        &tokenizer_config,
        &config("Ernie4_5_MoeForCausalLM"),
    )
    .unwrap();
    let tokens = strings(&keys, "tokenizer.ggml.tokens");
    assert_eq!(&tokens[259..], ["▁a", " end", "[PAD261]", "[PAD262]"]);
    let array = |key: &str| get(&keys, key).unwrap().as_array().unwrap();
    let types = array("tokenizer.ggml.token_type").to_u64s().unwrap();
    assert_eq!([types[0], types[1], types[2], types[3]], [2, 3, 1, 6]);
    assert_eq!(&types[259..], [1, 4, 5, 5]);
    let scores = array("tokenizer.ggml.scores").to_f64s().unwrap();
    assert_eq!(&scores[259..], [-1.5, -1000.0, -10_000.0, -10_000.0]);
    let wanted = (
        "tokenizer.ggml.add_space_prefix".to_owned(),
        Value::Bool(true),
    );
    assert_eq!(keys.last(), Some(&wanted));

    // Llama's converter writes it first, others leave it to the tokenizer.
    let keys = convert_files(&tokenizer, &tokenizer_config, &config("MixtralForCausalLM")).unwrap();
    assert_eq!(keys.first(), Some(&wanted));
    let keys = convert_files(&tokenizer, &tokenizer_config, &config("OlmoeForCausalLM")).unwrap();
    assert_eq!(keys.last(), Some(&(wanted.0, Value::Bool(false))));
    let dir = tempfile::tempdir().unwrap();
    load(keys, dir.path());

    // Without byte fallback llama.cpp would end the process at the first unknown character.
    tokenizer["model"]["vocab"][100] = json!(["x", 0.0]);
    let e = convert_files(&tokenizer, &Json::Null, &json!({}))
        .unwrap_err()
        .to_string();
    assert!(e.contains("no byte-fallback token <0x61>"), "{e}");
    tokenizer["model"]["vocab"][100] = json!(["▁a", 0.0]);
    let e = convert_files(&tokenizer, &Json::Null, &json!({}))
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("`model.vocab[259]` is the piece of `[100]` again"),
        "{e}"
    );
}

#[test]
fn pieces_beside_a_sentencepiece_model_are_taken() {
    let Some(shared) = shared() else { return };
    let from = shared.join("oracle/mixtral_spm");
    let dir = tempfile::tempdir().unwrap();
    let model = fs::read(from.join("tokenizer.model")).unwrap();
    fs::write(dir.path().join("tokenizer.model"), model).unwrap();
    fs::write(
        dir.path().join("added_tokens.json"),
        r#"{"<tool>": 512, "<far>": 900}"#,
    )
    .unwrap();
    fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"added_tokens_decoder": {"2": {"content": "</s>", "special": true}, "513": {"content": "▁x"},
            "514": {"content": "<|y|>"}}}"#,
    )
    .unwrap();
    let config = json!({"vocab_size": 516, "eos_token_id": 2, "pad_token_id": 600});
    let keys = metadata(dir.path(), &config, &VocabOptions::default()).unwrap();
    assert_eq!(
        &strings(&keys, "tokenizer.ggml.tokens")[512..],
        ["<tool>", " x", "<|y|>", "[PAD515]"]
    );
    let array = |key: &str| get(&keys, key).unwrap().as_array().unwrap();
    let types = array("tokenizer.ggml.token_type").to_u64s().unwrap();
    assert_eq!(&types[512..], [4, 4, 3, 5]);
    let scores = array("tokenizer.ggml.scores").to_f64s().unwrap();
    assert_eq!(
        (scores[2], scores[512], scores[515]),
        (-1000.0, -1000.0, -10_000.0)
    );
    assert_eq!(
        get(&keys, "tokenizer.ggml.eos_token_id"),
        Some(&Value::U32(2))
    );
    assert!(get(&keys, "tokenizer.ggml.padding_token_id").is_none());

    // Phi goes by what the files call a token, those of tokenizer.json too.
    let mut tokenizer = json!({"model": {"type": "BPE", "byte_fallback": true}});
    tokenizer["added_tokens"] = json!([{"id": 515, "content": "<|z|>", "special": true}]);
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"architectures": ["PhiMoEForCausalLM"], "vocab_size": 516});
    let keys = metadata(dir.path(), &config, &VocabOptions::default()).unwrap();
    assert_eq!(
        &strings(&keys, "tokenizer.ggml.tokens")[512..],
        ["<tool>", "▁x", "<|y|>", "<|z|>"]
    );
    let types = get(&keys, "tokenizer.ggml.token_type").unwrap();
    assert_eq!(
        &types.as_array().unwrap().to_u64s().unwrap()[512..],
        [4, 4, 4, 3]
    );
}
