//! The name llama.cpp has for a byte-level pre-tokenizer.
//!
//! llama.cpp splits text into words by regular expressions that are compiled in and chosen by a name,
//! `tokenizer.ggml.pre`. Its converter recognises a tokenizer by a hash of the ids it gives to one text,
//! which fails as soon as the vocabulary differs. Here the expressions themselves are compared: the
//! `pre_tokenizer` of `tokenizer.json` is brought to a list of expressions, and a table gives the name
//! under which llama.cpp splits in the same way.

use anyhow::{Result, anyhow};

use super::files::Field;

/// The expression of GPT-2, which the ByteLevel pre-tokenizer has built in.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Qwen2's, Llama 3's with single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
/// o200k of GPT-4o.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str =
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const THREE_DIGITS: &str = r"\p{N}{1,3}";
const DIGIT_GROUPS: &str = r"\d{1,3}(?=(?:\d{3})*\b)";
const CJK: &str = "[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const CASED_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const MARKS: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const ASIAN: &str = "[一-龥ࠀ-一가-퟿]+";
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A way llama.cpp splits.
struct Row {
    /// The expressions, in the order they are applied.
    expressions: &'static [&'static str],
    /// What llama.cpp's `ignore_merges` must be for this row; `None` where it has one row for both.
    ignore_merges: Option<bool>,
    /// The name for any model.
    name: &'static str,
    /// Names that llama.cpp's own converter gives certain model families for the same split: a part of
    /// `model_type` and the name.
    families: &'static [(&'static str, &'static str)],
}

const fn row(expressions: &'static [&'static str], name: &'static str) -> Row {
    Row {
        expressions,
        ignore_merges: None,
        name,
        families: &[],
    }
}

/// The ways llama.cpp splits that are recognised. The expressions are those of the original
/// `tokenizer.json` files, in the spelling of [`canonical`].
const TABLE: &[Row] = &[
    Row {
        families: &[("olmo", "olmo")],
        ..row(&[GPT2], "gpt-2")
    },
    Row {
        families: &[("granite", "refact"), ("cohere", "command-r")],
        ..row(&[r"\p{N}", GPT2], "starcoder")
    },
    row(&[QWEN2], "qwen2"),
    row(&[QWEN35], "qwen35"),
    Row {
        ignore_merges: Some(true),
        families: &[("glm", "glm4"), ("lfm2", "lfm2")],
        ..row(&[LLAMA3], "llama-bpe")
    },
    Row {
        ignore_merges: Some(false),
        families: &[("glm", "chatglm-bpe")],
        ..row(&[LLAMA3], "dbrx")
    },
    row(&[JAIS2], "jais-2"),
    Row {
        families: &[("llama4", "llama4"), ("minimax", "minimax-m2")],
        ..row(&[GPT4O], "gpt-4o")
    },
    row(&[TEKKEN], "tekken"),
    row(&[BAILING], "bailingmoe"),
    row(&[SEED_CODER], "seed-coder"),
    row(&[UFAKZEKA], "ufakzeka"),
    row(&[EXAONE_MOE], "exaone-moe"),
    row(&[THREE_DIGITS, MINICPM5], "minicpm5"),
    row(&[THREE_DIGITS, CJK, DEEPSEEK3], "deepseek-v3"),
    row(&[THREE_DIGITS, CJK, SPARK, r"\p{N}"], "spark2_5"),
    row(
        &[r"[\r\n]", CASED_LETTERS, MARKS, r"\s+$", ASIAN, r"\p{N}"],
        "deepseek-llm",
    ),
    row(
        &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", ASIAN, r"\p{N}"],
        "deepseek-coder",
    ),
    row(&[DIGIT_GROUPS, GPT4O], "tiny_aya"),
    row(&[KIMI], "kimi-k2"),
];

/// The names that llama.cpp accepts in `tokenizer.ggml.pre`: any other makes it refuse the file.
const NAMES: &[&str] = &[
    "a.x-4.0",
    "afmoe",
    "bailingmoe",
    "bailingmoe2",
    "bloom",
    "chameleon",
    "chatglm-bpe",
    "codeshell",
    "cohere2moe",
    "command-r",
    "dbrx",
    "deepseek-coder",
    "deepseek-llm",
    "deepseek-r1-qwen",
    "deepseek-v3",
    "default",
    "exaone",
    "exaone-moe",
    "exaone4",
    "f2llmv2",
    "falcon",
    "falcon-h1",
    "falcon3",
    "gemma4",
    "gigachat",
    "glm4",
    "glm5",
    "gpt-2",
    "gpt-4o",
    "gpt3-finnish",
    "granite-docling",
    "granite-embed-multi-311m",
    "granite-embed-multi-97m",
    "grok-2",
    "hunyuan",
    "hunyuan-dense",
    "hy_v4",
    "jais",
    "jais-2",
    "jina-de",
    "jina-es",
    "jina-v1-en",
    "jina-v2-code",
    "jina-v2-de",
    "jina-v2-es",
    "jina-v5-nano",
    "joyai-llm",
    "kanana2",
    "kimi-k2",
    "kormo",
    "laguna",
    "lfm2",
    "llada-moe",
    "llama-bpe",
    "llama-v3",
    "llama3",
    "llama4",
    "megrez",
    "mellum",
    "mellum2",
    "midm-2.0",
    "minerva-7b",
    "minicpm5",
    "minimax-m2",
    "mmbert",
    "modern-bert",
    "mpt",
    "olmo",
    "phi-2",
    "pixtral",
    "poro-chat",
    "qwen2",
    "qwen35",
    "refact",
    "roberta-bpe",
    "sarvam-moe",
    "seed-coder",
    "smaug-bpe",
    "smollm",
    "solar-open",
    "spark2_5",
    "stablelm2",
    "starcoder",
    "superbpe",
    "talkie",
    "tekken",
    "tiny_aya",
    "trillion",
    "ufakzeka",
    "viking",
    "whitespace",
    "youtu",
];

/// The names whose tokenizers llama.cpp gives a beginning-of-sequence token unless the file says not to.
const ADD_BOS: &[&str] = &[
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "chameleon",
];

/// Whether llama.cpp adds a beginning-of-sequence token under this name when the file does not say.
pub(super) fn adds_bos_by_default(name: &str) -> bool {
    ADD_BOS.contains(&name)
}

/// Checks a name given by the user.
///
/// # Errors
/// llama.cpp has no such pre-tokenizer.
pub(super) fn check_name(name: &str) -> Result<()> {
    if NAMES.contains(&name) {
        return Ok(());
    }
    Err(anyhow!(
        "--pre-tokenizer {name}: llama.cpp knows no such pre-tokenizer; the names are {}",
        NAMES.join(", ")
    ))
}

/// An expression in one spelling: control characters as escapes, and case folded the short way.
fn canonical(expression: &str) -> String {
    expression
        .replace('\r', r"\r")
        .replace('\n', r"\n")
        .replace('\t', r"\t")
        .replace(
            "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        )
        .replace(r"\p{N}{1}", r"\p{N}")
}

/// Whether an expression leaves no character between its matches: then keeping only the matches is the
/// same as isolating them. The last alternatives of such expressions take any white space left.
fn covers_text(expression: &str) -> bool {
    expression.ends_with(r"|\s+") && expression.contains(r"[^\s\p{L}")
        || expression.ends_with(r"|\s{1}")
}

/// The steps of a pre-tokenizer as expressions, or what stands in the way.
struct Steps {
    expressions: Vec<String>,
    byte_level: bool,
}

impl Steps {
    fn read(&mut self, step: &Field<'_>) -> Result<()> {
        let foreign = |what: &str| step.error(format_args!("has {what}"));
        if self.byte_level && step.kind()? != "Sequence" {
            // After ByteLevel the text is no longer what expressions are written for.
            return Err(foreign("a step after ByteLevel"));
        }
        match step.kind()? {
            "Sequence" => {
                for inner in step.require("pretokenizers")?.items()? {
                    self.read(&inner)?;
                }
            }
            "Split" => {
                let pattern = step.require("pattern")?;
                let Some(regex) = pattern.get("Regex")? else {
                    return Err(foreign("a Split by a fixed string"));
                };
                let expression = canonical(regex.string()?);
                let behavior = step.require("behavior")?.string()?;
                let invert = step.flag("invert", false)?;
                let isolates = behavior == "Isolated"
                    || (behavior == "Removed" && invert && covers_text(&expression));
                if !isolates {
                    return Err(foreign(&format!(
                        "a Split with behavior {behavior} (invert {invert})"
                    )));
                }
                self.expressions.push(expression);
            }
            "Digits" => {
                let individual = step.flag("individual_digits", false)?;
                let expression = if individual { r"\p{N}" } else { r"\p{N}+" };
                self.expressions.push(expression.to_owned());
            }
            "ByteLevel" => {
                if step.flag("add_prefix_space", true)? {
                    return Err(foreign("ByteLevel with add_prefix_space"));
                }
                if step.flag("use_regex", true)? {
                    self.expressions.push(GPT2.to_owned());
                }
                self.byte_level = true;
            }
            other => return Err(foreign(&format!("a step of type {other}"))),
        }
        Ok(())
    }
}

/// Normalizers that change text in ways llama.cpp does not. It does not compose characters (NFC) either,
/// but nearly all text is composed already, and its own conversions accept that.
fn check_normalizer(normalizer: &Field<'_>) -> Result<()> {
    match normalizer.kind()? {
        "NFC" => Ok(()),
        "Sequence" => {
            for inner in normalizer.require("normalizers")?.items()? {
                check_normalizer(&inner)?;
            }
            Ok(())
        }
        other => Err(normalizer.error(format_args!(
            "has the normalizer {other}, which llama.cpp does not apply to byte-level vocabularies"
        ))),
    }
}

/// llama.cpp's name for the pre-tokenizer of the `tokenizer.json` with this root. `model_type`, of the
/// model's configuration, chooses between names that split alike.
///
/// # Errors
/// llama.cpp has none that splits like it; the error says what it met and names `--pre-tokenizer`.
pub(super) fn derive(
    root: &Field<'_>,
    ignore_merges: bool,
    model_type: &str,
) -> Result<&'static str> {
    find(root, ignore_merges, model_type).map_err(|e| {
        anyhow!(
            "{e:#}\nllama.cpp has no pre-tokenizer known to split text in this way. If you know which one of its \
             pre-tokenizers suits this model, name it with --pre-tokenizer"
        )
    })
}

fn find(root: &Field<'_>, ignore_merges: bool, model_type: &str) -> Result<&'static str> {
    if let Some(normalizer) = root.get("normalizer")? {
        check_normalizer(&normalizer)?;
    }
    let pre_tokenizer = root.require("pre_tokenizer")?;
    let mut steps = Steps {
        expressions: Vec::new(),
        byte_level: false,
    };
    steps.read(&pre_tokenizer)?;
    if !steps.byte_level {
        return Err(pre_tokenizer.error("has no ByteLevel step"));
    }
    let alike: Vec<&Row> = TABLE
        .iter()
        .filter(|row| row.expressions == steps.expressions.as_slice())
        .collect();
    // Where llama.cpp splits alike but only with the other `ignore_merges`, its converter takes that: it
    // matters only for tokens that the merges cannot make.
    let chosen = alike
        .iter()
        .find(|row| row.ignore_merges.is_none_or(|m| m == ignore_merges))
        .or(alike.first());
    match chosen {
        Some(row) => Ok(row
            .families
            .iter()
            .find(|(family, _)| model_type.contains(family))
            .map_or(row.name, |&(_, name)| name)),
        None if steps.expressions.is_empty() => {
            Err(pre_tokenizer.error("does not split text into words"))
        }
        None => Err(pre_tokenizer.error(format_args!(
            "splits by expressions that are not in the table: {}",
            steps.expressions.join("  then  ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn name(value: &Value, ignore_merges: bool, model_type: &str) -> Result<&'static str> {
        let root = json!({"normalizer": null, "pre_tokenizer": value});
        derive(
            &Field::root(Path::new("tokenizer.json"), &root),
            ignore_merges,
            model_type,
        )
    }

    fn split(expression: &str) -> Value {
        json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false})
    }

    fn sequence(mut steps: Vec<Value>, use_regex: bool) -> Value {
        steps.push(
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                          "use_regex": use_regex}),
        );
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    #[test]
    fn every_row_is_found_by_its_expressions() {
        for row in TABLE {
            let steps = row.expressions.iter().map(|e| split(e)).collect();
            let ignore = row.ignore_merges.unwrap_or(false);
            assert_eq!(name(&sequence(steps, false), ignore, "").unwrap(), row.name);
            assert!(NAMES.contains(&row.name), "{}", row.name);
            for (_, family) in row.families {
                assert!(NAMES.contains(family), "{family}");
            }
            for e in row.expressions {
                assert_eq!(canonical(e), *e, "the table is not in canonical spelling");
            }
        }
        assert!(ADD_BOS.iter().all(|n| NAMES.contains(n)));
    }

    #[test]
    fn spellings_of_one_split_are_one() {
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false});
        assert_eq!(name(&byte_level, false, "gpt2").unwrap(), "gpt-2");
        assert_eq!(name(&byte_level, false, "olmoe").unwrap(), "olmo");
        let digits = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(
            name(&sequence(vec![digits], true), false, "").unwrap(),
            "starcoder"
        );
        let raw = QWEN2.replace(r"\r", "\r").replace(r"\n", "\n");
        assert_eq!(
            name(&sequence(vec![split(&raw)], false), false, "").unwrap(),
            "qwen2"
        );
        let removed = json!({"type": "Split", "pattern": {"Regex": GPT4O}, "behavior": "Removed", "invert": true});
        assert_eq!(
            name(&sequence(vec![removed], false), true, "gpt_oss").unwrap(),
            "gpt-4o"
        );
        let llama3 = sequence(vec![split(LLAMA3)], false);
        assert_eq!(name(&llama3, true, "mixtral").unwrap(), "llama-bpe");
        assert_eq!(name(&llama3, false, "mixtral").unwrap(), "dbrx");
        assert_eq!(name(&llama3, true, "glm4_moe").unwrap(), "glm4");
        assert_eq!(name(&llama3, true, "lfm2_moe").unwrap(), "lfm2");
    }

    #[test]
    fn unknown_splits_are_refused_and_name_the_option() {
        let digits = json!({"type": "Digits", "individual_digits": true});
        let cases = [
            (sequence(vec![split(r"\p{N}{2}")], false), r"\p{N}{2}"),
            (sequence(vec![], false), "does not split text"),
            (json!({"type": "ByteLevel"}), "add_prefix_space"),
            (
                json!({"type": "Sequence", "pretokenizers": [split(QWEN2)]}),
                "no ByteLevel",
            ),
            (
                json!({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": false}, digits]}),
                "a step after ByteLevel",
            ),
            (
                sequence(vec![json!({"type": "Whitespace"})], false),
                "Whitespace",
            ),
            (
                sequence(
                    vec![
                        json!({"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Removed", "invert": true}),
                    ],
                    false,
                ),
                "behavior Removed",
            ),
            (json!({"type": 3}), "`pre_tokenizer.type`"),
            (Value::Null, "`pre_tokenizer` is missing"),
        ];
        for (value, wanted) in cases {
            let e = name(&value, false, "").unwrap_err().to_string();
            assert!(e.contains(wanted), "{e:?} lacks {wanted:?}");
            assert!(
                e.contains("--pre-tokenizer") && e.contains("tokenizer.json"),
                "{e}"
            );
        }
    }

    #[test]
    fn normalizers_that_llama_cpp_lacks_are_refused() {
        let root = |normalizer: Value| {
            let value = json!({"normalizer": normalizer, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}});
            derive(&Field::root(Path::new("f"), &value), false, "").map_err(|e| e.to_string())
        };
        assert_eq!(root(json!({"type": "NFC"})), Ok("gpt-2"));
        assert_eq!(
            root(json!({"type": "Sequence", "normalizers": []})),
            Ok("gpt-2")
        );
        let e = root(json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}));
        assert!(e.unwrap_err().contains("Lowercase"));
    }

    #[test]
    fn names_given_by_the_user_are_checked() {
        assert!(check_name("qwen2").is_ok());
        let e = check_name("qwen9").unwrap_err().to_string();
        assert!(
            e.contains("--pre-tokenizer qwen9") && e.contains("deepseek-v3"),
            "{e}"
        );
    }
}
