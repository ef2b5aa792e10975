//! One MedQuAD document to question–answer pairs.
//!
//! Format: github.com/abachaa/MedQuAD; `Document[@id @source @url]` (the root has another name in places) › `Focus`,
//! `QAPairs/QAPair[@pid]` › `Question[@qid @qtype]`, `Answer`.

use quick_xml::Reader;
use quick_xml::XmlVersion;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesStart, Event};

/// A question with its answer, which is empty where the publisher had it removed. No text is trimmed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pair {
    pub qid: String,
    pub question: String,
    pub answer: String,
    pub question_type: String,
}

/// What a file holds; `focus`, `source` and `url` belong to every pair.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    pub source: String,
    pub url: String,
    pub focus: String,
    pub pairs: Vec<Pair>,
}

/// Why a file is not a MedQuAD document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct Malformed {
    /// From 1.
    pub line: usize,
    pub message: String,
}

/// The element whose text is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Focus,
    Question,
    Answer,
}

/// Parses the bytes of one XML file; `None` for a document of another kind, without `QAPairs`.
///
/// # Errors
/// [`Malformed`] for bytes that are not UTF-8 and for XML that is not well formed.
pub fn parse(bytes: &[u8]) -> Result<Option<Document>, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let (at, byte) = (
            error.valid_up_to(),
            bytes.get(error.valid_up_to()).copied().unwrap_or_default(),
        );
        malformed(bytes, at, format!("not UTF-8: byte 0x{byte:02x}"))
    })?;
    let mut reader = Reader::from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut state = State::default();
    loop {
        let event = reader
            .read_event()
            .map_err(|error| malformed(bytes, reader.error_position() as usize, error));
        let step = match event? {
            Event::Eof => break,
            event => state.step(event),
        };
        step.map_err(|message| malformed(bytes, reader.buffer_position() as usize, message))?;
    }
    let end = bytes.len();
    if !state.open.is_empty() {
        return Err(malformed(
            bytes,
            end,
            format!("the file ends inside `{}`: cut off", state.open.join("/")),
        ));
    }
    if !state.seen_root {
        return Err(malformed(
            bytes,
            end,
            "there is no element: the file is empty",
        ));
    }
    Ok(state.seen_pairs.then_some(state.document))
}

#[derive(Default)]
struct State {
    document: Document,
    /// Names of the elements around the current place.
    open: Vec<String>,
    seen_root: bool,
    seen_pairs: bool,
    target: Option<Target>,
}

impl State {
    fn step(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Start(start) => {
                self.enter(&start)?;
                self.open.push(start.name().0.to_owned());
            }
            Event::Empty(start) => {
                self.enter(&start)?;
                self.leave(start.name().0);
            }
            Event::End(end) => {
                self.open.pop();
                self.leave(end.name().0);
            }
            Event::Text(text) => self.push(&text.xml10_content()),
            Event::CData(text) => self.push(&text.xml10_content()),
            Event::GeneralRef(reference) => {
                if let Some(c) = reference
                    .resolve_char_ref()
                    .map_err(|error| error.to_string())?
                {
                    self.push(c.encode_utf8(&mut [0; 4]));
                } else {
                    let name = reference.into_inner();
                    self.push(
                        resolve_xml_entity(&name)
                            .ok_or_else(|| format!("unknown entity `&{name};`"))?,
                    );
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn enter(&mut self, start: &BytesStart) -> Result<(), String> {
        let attribute = |name: &str| -> Result<String, String> {
            let attribute = start
                .try_get_attribute(name)
                .map_err(|error| error.to_string())?;
            let value = attribute
                .map(|attribute| attribute.normalized_value(XmlVersion::Implicit1_0))
                .transpose();
            Ok(value
                .map_err(|error| error.to_string())?
                .unwrap_or_default()
                .into_owned())
        };
        match (start.name().0, self.open.len()) {
            (_, 0) => {
                self.seen_root = true;
                (self.document.source, self.document.url) =
                    (attribute("source")?, attribute("url")?);
            }
            ("QAPairs", _) => self.seen_pairs = true,
            ("Focus", 1) => self.target = Some(Target::Focus),
            ("QAPair", _) => self.document.pairs.push(Pair::default()),
            ("Question", _) => {
                let (qid, question_type) = (attribute("qid")?, attribute("qtype")?);
                let pair = self
                    .document
                    .pairs
                    .last_mut()
                    .ok_or("`Question` outside a `QAPair`")?;
                (pair.qid, pair.question_type) = (qid, question_type);
                self.target = Some(Target::Question);
            }
            ("Answer", _) => {
                self.document
                    .pairs
                    .last()
                    .ok_or("`Answer` outside a `QAPair`")?;
                self.target = Some(Target::Answer);
            }
            _ => {}
        }
        Ok(())
    }

    fn leave(&mut self, name: &str) {
        if matches!(name, "Focus" | "Question" | "Answer") {
            self.target = None;
        }
    }

    /// Text of elements inside a target belongs to it.
    fn push(&mut self, text: &str) {
        let field = match (self.target, self.document.pairs.last_mut()) {
            (Some(Target::Focus), _) => &mut self.document.focus,
            (Some(Target::Question), Some(pair)) => &mut pair.question,
            (Some(Target::Answer), Some(pair)) => &mut pair.answer,
            _ => return,
        };
        field.push_str(text);
    }
}

fn malformed(bytes: &[u8], at: usize, message: impl ToString) -> Malformed {
    let before = &bytes[..at.min(bytes.len())];
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    Malformed {
        line,
        message: message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Document id="7" source="NHS" url="https://example.org/a?b=1&amp;c=2">
<!-- a note -->
<Focus>Crohn&apos;s disease</Focus>
<FocusAnnotations><Category>Disease</Category></FocusAnnotations>
<QAPairs>
 <QAPair pid="1">
  <Question qid="7-1" qtype="information">What is it &lt;really&gt;?</Question>
  <Answer>An inflammation &#40;of the bowel&#x29;.
  <![CDATA[It is < chronic.]]></Answer>
 </QAPair>
 <QAPair pid="2"><Question qid="7-2" qtype="outlook">And then?</Question><Answer/></QAPair>
</QAPairs>
</Document>"#;

    #[test]
    fn reads_pairs_entities_and_sections() {
        let document = parse(SAMPLE.as_bytes()).unwrap().unwrap();
        assert_eq!(
            (document.focus.as_str(), document.source.as_str()),
            ("Crohn's disease", "NHS")
        );
        assert_eq!(document.url, "https://example.org/a?b=1&c=2");
        assert_eq!(document.pairs.len(), 2);
        assert_eq!(document.pairs[0].question, "What is it <really>?");
        assert_eq!(
            document.pairs[0].answer,
            "An inflammation (of the bowel).\n  It is < chronic."
        );
        let second = &document.pairs[1];
        assert_eq!(
            (
                second.qid.as_str(),
                second.question_type.as_str(),
                second.answer.as_str()
            ),
            ("7-2", "outlook", "")
        );
    }

    #[test]
    fn other_documents_are_told_apart() {
        assert_eq!(parse(b"<doc><qaPairs/></doc>"), Ok(None));
        assert_eq!(
            parse(b"<DiseaseFile><QAPairs/></DiseaseFile>"),
            Ok(Some(Document::default()))
        );
    }

    #[test]
    fn names_the_line_of_what_is_wrong() {
        let message = |text: &[u8]| parse(text).unwrap_err().to_string();
        insta::assert_snapshot!(message(&SAMPLE.as_bytes()[..420]), @"line 10: syntax error: tag not closed: `>` not found before end of input");
        insta::assert_snapshot!(message(SAMPLE.replace("</Question>\n", "</Answer>\n").as_bytes()), @"line 8: ill-formed document: expected `</Question>`, but `</Answer>` was found");
        insta::assert_snapshot!(message(SAMPLE.replace("&apos;", "&nbsp;").as_bytes()), @"line 4: unknown entity `&nbsp;`");
        insta::assert_snapshot!(message(&[b"<Document>\n".as_slice(), &[0xe9, b'x']].concat()), @"line 2: not UTF-8: byte 0xe9");
        insta::assert_snapshot!(message(b""), @"line 1: there is no element: the file is empty");
    }

    #[test]
    fn survives_damage() {
        crate::fuzz::survives(&[SAMPLE.into()], |bytes| {
            // What is wrong with them is told; that it is told is all that counts here.
            let _ = parse(bytes);
        });
    }
}
