//! The JSON Schema of the YAML, for editors.

use super::tree::Config;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{Schema, json_schema, schema_for};
use serde_json::Value;

/// The schema, made from the same types that read the YAML.
#[must_use]
pub fn schema() -> Value {
    let mut schema = schema_for!(Config);
    Expandable.transform(&mut schema);
    schema.to_value()
}

/// Lets `${…}` stand for every number, flag and choice.
struct Expandable;

impl Transform for Expandable {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let typed = |kind: &Value| matches!(kind.as_str(), Some("integer" | "number" | "boolean"));
        let scalar = match schema.get("type") {
            Some(Value::Array(kinds)) => kinds.iter().any(typed),
            Some(kind) => typed(kind) || schema.get("enum").is_some(),
            None => false,
        };
        if !scalar {
            return;
        }
        let inner = std::mem::take(schema);
        let mut outer = json_schema!({});
        let mut rest = Schema::default();
        for (key, value) in inner.as_object().into_iter().flatten() {
            let target = match key.as_str() {
                "description" | "default" | "title" => &mut outer,
                _ => &mut rest,
            };
            target.insert(key.clone(), value.clone());
        }
        let expression = json_schema!({"type": "string", "pattern": r"\$\{"});
        outer.insert("anyOf".into(), Value::Array(vec![rest.to_value(), expression.to_value()]));
        *schema = outer;
    }
}
