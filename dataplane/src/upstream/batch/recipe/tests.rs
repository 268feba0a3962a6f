use serde_json::{Value, json};

use super::*;

fn passed(body: &Value, stream: bool, headers: &[(&'static str, &'static str)]) -> Option<(Recipe, String)> {
    let header =
        |(name, value): &(&'static str, &'static str)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    Recipe::pass(&Call {
        path: "/completions",
        body: body.to_string().into(),
        headers: headers.iter().map(header).collect(),
        who: "p".into(),
        own_model: true,
        pass_errors: true,
        whole: !stream,
    })
}

#[test]
fn requests_that_differ_in_their_prompts_only_share_a_recipe() {
    let body = |prompt: &str| json!({"model": "m", "prompt": prompt, "max_tokens": 5});
    let (one, prompt) = passed(&body("a"), false, &[("x-request-id", "1")]).unwrap();
    let (other, _) = passed(&body("b"), false, &[("x-request-id", "2")]).unwrap();
    assert_eq!((&one, prompt.as_str()), (&other, "a"));
    assert_ne!(one, passed(&json!({"model": "m", "prompt": "a"}), false, &[]).unwrap().0);
    assert_ne!(one, passed(&body("a"), true, &[]).unwrap().0);
    assert_ne!(one, passed(&body("a"), false, &[("openai-beta", "x")]).unwrap().0);
    let call = one.call(&["a", "b\""]);
    let sent: Value = serde_json::from_slice(&call.body).unwrap();
    assert_eq!(sent, json!({"model": "m", "prompt": ["a", "b\""], "max_tokens": 5}));
    assert!(call.whole && call.pass_errors && call.own_model);
}

#[test]
fn what_concerns_the_batch_as_a_whole_goes_alone() {
    for body in [
        json!({"prompt": "a", "n": 2}),
        json!({"prompt": "a", "best_of": 2}),
        json!({"prompt": ["a"]}),
        json!({"prompt": null}),
        json!({"model": "m"}),
        json!({"prompt": "a", "stream_options": {"continuous_usage_stats": true}}),
        json!([1]),
    ] {
        assert!(passed(&body, true, &[]).is_none(), "{body}");
    }
    assert!(passed(&json!({"prompt": "a", "n": 1, "best_of": null}), true, &[]).is_some());
}

#[test]
fn simple_servers_have_a_path_and_a_field_of_their_own() {
    let call = Recipe::simple(9).call(&["a", "b"]);
    assert_eq!((call.path, call.whole), ("/chat/batch", true));
    assert_eq!(serde_json::from_slice::<Value>(&call.body).unwrap(), json!({"prompts": ["a", "b"], "max_tokens": 9}));
}
