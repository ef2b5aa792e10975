//! Chat templates: the Jinja text that a model's makers ship to turn messages into a prompt, rendered as transformers
//! does (`apply_chat_template`: trimmed blocks, Python's JSON and string methods, no HTML escaping).

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::{LmError, chat_namespace};

/// One turn of a conversation. `role` is `system`, `user` or `assistant`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }

    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

const NAME: &str = "chat_template";

/// Bytes of source; templates of models take up to 20 KB.
const LONGEST: usize = 128 << 10;
/// Calls within calls of macros; templates that write out JSON schemas nest some ten.
const MOST_CALLS: usize = 64;
/// Steps of the library's machine and units of 64 bytes that a rendering may take: half a second and 640 MB at most, thousands of turns.
const MOST_WORK: u64 = 10_000_000;
/// Bytes of stack per byte of source. The compiler calls itself once for each link of a chain (`a|b|b|b`), which it does not
/// bound; only memory that is used is taken.
const STACK_PER_BYTE: usize = 2 << 10;

impl ChatTemplate {
    /// Compiles `source`; the tokens are variables of the same names to the template.
    ///
    /// # Errors
    /// [`LmError::Template`] naming the line that does not parse, or for a source that is no template of a model by its length.
    pub fn new(
        source: &str,
        bos_token: Option<String>,
        eos_token: Option<String>,
    ) -> Result<Self, LmError> {
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(template_error)?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax.clone());
        environment.set_fuel(Some(MOST_WORK));
        environment.set_unknown_method_callback(unknown_method_callback);
        // Macros that call themselves: the library's own bound of 500 is more than a thread's stack of 2 MiB bears.
        environment.set_recursion_limit(MOST_CALLS);
        environment.add_filter("tojson", to_json);
        environment.add_filter(chat_namespace::FILTER, chat_namespace::kept);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        let environment = compile(environment, source, syntax)?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            bos_token,
            eos_token,
        })
    }

    /// The template of a model that must have one.
    ///
    /// # Errors
    /// [`LmError::Template`] for base models.
    pub fn of_model(template: Option<&Self>) -> Result<&Self, LmError> {
        template.ok_or_else(|| LmError::Template("the model has none; it is a base model".into()))
    }

    /// Identifies the template: adapters trained with one must not be used with another.
    pub fn hash(&self) -> String {
        blake3::hash(self.source.as_bytes()).to_hex().to_string()
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for `messages`, closed for training, or open for the assistant's next turn if `add_generation_prompt`.
    /// The text holds every special token it needs: encode it without adding any.
    ///
    /// # Errors
    /// [`LmError::Template`] with the template's own words where it refuses the messages.
    pub fn render<M: Serialize>(
        &self,
        messages: &[M],
        add_generation_prompt: bool,
    ) -> Result<String, LmError> {
        self.render_with_tools(messages, None::<&()>, add_generation_prompt)
    }

    /// Like [`ChatTemplate::render`], with the JSON schemas of callable functions.
    pub fn render_with_tools<M: Serialize, T: Serialize>(
        &self,
        messages: &[M],
        tools: Option<&T>,
        add_generation_prompt: bool,
    ) -> Result<String, LmError> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(template_error)?;
        let variables = context! {
            messages => Value::from(Serde(messages)),
            tools => tools.map(|tools| Value::from(Serde(tools))),
            add_generation_prompt,
            bos_token => self.bos_token.as_deref(),
            eos_token => self.eos_token.as_deref(),
        };
        template.render(variables).map_err(template_error)
    }
}

fn template_error(error: Error) -> LmError {
    let place = error
        .line()
        .map(|line| format!("line {line}: "))
        .unwrap_or_default();
    let reason = match error.kind() {
        ErrorKind::OutOfFuel => "it works on without end; no prompt needs as much".to_owned(),
        kind => error
            .detail()
            .map_or_else(|| kind.to_string(), str::to_owned),
    };
    LmError::Template(format!("{place}{reason}"))
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The date in the caller's time zone. Only templates that print a date call it; their prompts differ from day to day.
fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::ZonedDateTime::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Transformers passes these on to Python; the values that differ from its own defaults are not in use.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let mut bytes = Vec::new();
    let result = match indent {
        None => value.serialize(&mut Serializer::with_formatter(
            &mut bytes,
            PythonSeparators,
        )),
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let pretty = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut bytes, pretty))
        }
    };
    let failed = |error: String| Error::new(ErrorKind::BadSerialization, error);
    result.map_err(|error| failed(error.to_string()))?;
    options.assert_all_used()?;
    String::from_utf8(bytes).map_err(|error| failed(error.to_string()))
}

/// `, ` and `: ` instead of serde's bare separators.
struct PythonSeparators;

impl Formatter for PythonSeparators {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Compiles on a thread of its own, whose stack fits whatever the source nests.
fn compile(
    mut environment: Environment<'static>,
    source: &str,
    syntax: SyntaxConfig,
) -> Result<Environment<'static>, LmError> {
    if source.len() > LONGEST {
        return Err(LmError::Template(format!(
            "it has {} bytes, more than {LONGEST}",
            source.len()
        )));
    }
    let owned = source.to_owned();
    let compiler = std::thread::Builder::new()
        .stack_size((source.len() * STACK_PER_BYTE).max(1 << 20))
        .spawn(move || {
            // First as it is, so that mistakes are told in its own words.
            environment.add_template_owned(NAME, owned.clone())?;
            let checked = chat_namespace::checked(&owned, syntax)?;
            environment.add_template_owned(NAME, checked)?;
            Ok(environment)
        })
        .map_err(|error| LmError::Template(format!("no thread to compile it: {error}")))?;
    compiler
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        .map_err(template_error)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, messages: serde_json::Value) -> Result<String, String> {
        let template = ChatTemplate::new(source, Some("<s>".into()), None)
            .map_err(|error| error.to_string())?;
        template
            .render(messages.as_array().unwrap(), true)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn json_is_pythons() {
        let messages = json!([{ "b": [1, 2.5, null, true], "a": { "x": "<é'\"\n>" }, "e": {} }]);
        assert_eq!(
            render("{{ messages[0] | tojson }}", messages.clone()).unwrap(),
            r#"{"b": [1, 2.5, null, true], "a": {"x": "<é'\"\n>"}, "e": {}}"#
        );
        assert_eq!(
            render("{{ messages[0].b | tojson(indent=2) }}", messages).unwrap(),
            "[\n  1,\n  2.5,\n  null,\n  true\n]"
        );
    }

    #[test]
    fn python_string_methods_and_blocks() {
        let source = "{%- for m in messages[::-1] %}\n  {% if m.c.startswith('a') %}\n{{ m.c.split('|')[-1].lstrip('\\n') }}\n  {% endif %}\n{% endfor %}\n{{ bos_token }}{% if eos_token %}!{% endif %}\n";
        let messages = json!([{ "c": "a|\n1" }, { "c": "b|2" }, { "c": "a|3" }]);
        assert_eq!(render(source, messages).unwrap(), "3\n1\n<s>");
    }

    #[test]
    fn errors_speak_with_the_templates_words() {
        let error =
            render("\n{{ raise_exception('roles must alternate') }}", json!([])).unwrap_err();
        insta::assert_snapshot!(error, @"chat template: line 2: roles must alternate");
        let error = render("{% if %}", json!([])).unwrap_err();
        insta::assert_snapshot!(error, @"chat template: line 1: unexpected end of block");
    }

    #[test]
    fn hash_is_of_the_source() {
        let hash = |source: &str| ChatTemplate::new(source, None, None).unwrap().hash();
        assert_eq!(hash("a"), hash("a"));
        assert_ne!(hash("a"), hash("b"));
    }

    #[test]
    fn long_chains_end() {
        let chain = |link: &str, times: usize| {
            render(&format!("{{{{ 1{} }}}}", link.repeat(times)), json!([]))
        };
        assert_eq!(chain("|int", 30_000).unwrap(), "1");
        assert_eq!(chain("+1", 60_000).unwrap(), "60001");
        assert!(chain(".a", 60_000).is_err() && chain("[0]", 40_000).is_err());
        let refused = chain("~1", 100_000).unwrap_err();
        insta::assert_snapshot!(refused, @"chat template: it has 200007 bytes, more than 131072");
    }

    #[test]
    fn calls_without_end_end() {
        let source = "{% macro f(n) %}{{ f(n + 1) | trim }}{% endmacro %}{{ f(1) }}";
        assert!(
            render(source, json!([]))
                .unwrap_err()
                .contains("recursion limit")
        );
    }

    #[test]
    fn namespaces_cannot_grow_without_end() {
        let refused = |body: &str| {
            let source = format!("{{% set ns = namespace(n=0) %}}{body}{{{{ ns.n }}}}");
            render(&source, json!([])).unwrap_err()
        };
        let itself = refused("\n{% set ns.n = [1, {'a': ns}] %}");
        insta::assert_snapshot!(itself, @"chat template: line 2: a namespace cannot hold a namespace");
        let deep = refused("{% for i in range(9999) %}{% set ns.n = (ns.n,) %}{% endfor %}");
        insta::assert_snapshot!(deep, @"chat template: line 1: a namespace cannot hold values nested more than 64 deep");
        let wide = refused("{% for i in range(60) %}{% set ns.n = [ns.n, ns.n] %}{% endfor %}");
        insta::assert_snapshot!(wide, @"chat template: line 1: a namespace cannot hold more than 16 MiB");
        let long = refused("{% for i in range(60) %}{% set ns.n = ns.n ~ ns.n %}{% endfor %}");
        insta::assert_snapshot!(long, @"chat template: line 1: a namespace cannot hold more than 16 MiB");
        for other in [
            "namespace(a=ns)",
            "dict(a=ns)",
            "[ns]|list",
            "namespace",
            "{'a': [ns]}.items()",
            "[[ns]]|first",
            "ns|items|list",
        ] {
            let source = format!(
                "{{% set ns = namespace() %}}{{% set ns.n = {other} %}}{{% set ns.n = ns.n %}}{{{{ ns }}}}"
            );
            let _ = render(&source, json!([]));
        }
        let block = "{% set ns = namespace() %}{% set ns.n | zip([ns]) %}a{% endset %}{{ ns }}";
        let _ = render(block, json!([]));
    }

    #[test]
    fn loops_without_end_end() {
        let source = "{% for i in range(9999) %}{% for j in range(9999) %}{% set x = i %}{% endfor %}{% endfor %}";
        insta::assert_snapshot!(render(source, json!([])).unwrap_err(), @"chat template: line 1: it works on without end; no prompt needs as much");
    }

    #[test]
    fn survives_damage() {
        let messages =
            json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }]);
        let seeds = [
            "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}{% endfor %}",
            "{%- if messages[0].role == 'system' %}{{ raise_exception('no') }}{%- endif %}{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + loop.index0 %}{{ m | tojson(indent=2) }}{% endfor %}{{ ns.n }}",
            "{% macro say(m) %}{{ m.content.split('a')[-1].lstrip('\\n') }}{% endmacro %}{% for i in range(3) %}{{ say(messages[0]) ~ i }}{% endfor %}",
        ];
        let seeds: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
        crate::fuzz::survives(&seeds, |bytes| {
            let _ = render(&String::from_utf8_lossy(bytes), messages.clone());
        });
    }
}
