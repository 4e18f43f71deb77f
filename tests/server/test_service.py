"""The server over HTTP: OpenAI's API, and persona."""

from pathlib import Path
from typing import Any

import pytest
from support.serving import Client, client, good

from personavec.server.options import ServeConfig
from personavec.steering.vector import load_vector


def test_a_reply_with_its_projections(server: Client) -> None:
    told = good(server.ask())
    choice = told["choices"][0]
    assert told["object"] == "chat.completion" and choice["message"]["role"] == "assistant"
    assert told["usage"]["completion_tokens"] == len(choice["persona"]["pieces"]) <= 8
    read = choice["persona"]["projections"]["tiny"]
    assert read["layer"] == 2
    assert read["response_avg"] == pytest.approx(sum(read["tokens"]) / len(read["tokens"]))
    assert "".join(choice["persona"]["pieces"]) == choice["message"]["content"]
    assert told["persona"]["steering"] == [] and told["persona"]["turn"] == 1


def test_a_seed_repeats_and_choices_differ(server: Client) -> None:
    first, again, other = (good(server.ask(n=3, seed=seed)) for seed in (3, 3, 4))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert len(set(texts)) == 3
    assert texts != [choice["message"]["content"] for choice in other["choices"]]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_is_the_whole_in_pieces(server: Client, path: str) -> None:
    asked: dict[str, Any] = (
        {"logprobs": True, "top_logprobs": 2} if "chat" in path else {"messages": None, "prompt": "Hi", "logprobs": 2}
    )
    asked = {"path": path, "n": 2, "max_tokens": 20} | asked
    whole = good(server.ask(**asked))
    events = server.events(**asked, stream_options={"include_usage": True})
    assert events[-1]["usage"] == whole["usage"] and events[-1]["choices"] == []
    for choice in whole["choices"]:
        mine = [event["choices"][0] for event in events[:-1] if event["choices"][0]["index"] == choice["index"]]
        texts = [one["delta"].get("content", "") if "chat" in path else one["text"] for one in mine]
        assert "".join(texts) == (choice["message"]["content"] if "chat" in path else choice["text"])
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        assert mine[-1]["persona"] | {"pieces": choice["persona"]["pieces"]} == choice["persona"]
        assert "pieces" not in mine[-1]["persona"], "a client that adds up pieces would have all of them twice"
        pieces = [piece for one in mine[:-1] for piece in one["persona"]["pieces"]]
        tokens = [value for one in mine[:-1] for value in one["persona"]["tokens"]["tiny"]]
        assert pieces == choice["persona"]["pieces"]
        assert tokens == choice["persona"]["projections"]["tiny"]["tokens"]
        if "chat" in path:
            assert mine[0]["delta"] == {"role": "assistant", "content": ""} and mine[0]["logprobs"] is None
            told = [entry for one in mine[1:-1] for entry in one["logprobs"]["content"]]
            assert told == choice["logprobs"]["content"] and len(told) == len(pieces)
            assert all(entry["logprob"] <= entry["top_logprobs"][0]["logprob"] + 1e-5 for entry in told)
        else:
            assert [value for one in mine[:-1] for value in one["logprobs"]["token_logprobs"]] == choice["logprobs"][
                "token_logprobs"
            ]
    assert (
        events[0]["persona"]["prompt_last"]["tiny"]
        == whole["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"]
    )


def test_stop_texts_end_a_reply(server: Client) -> None:
    text = good(server.ask(max_tokens=30))["choices"][0]["message"]["content"]
    stop = text[4:6]
    told = good(server.ask(max_tokens=30, stop=[stop, "never"]))["choices"][0]
    assert told["message"]["content"] == text[: text.index(stop)] and told["finish_reason"] == "stop"


def test_steering_is_data(server: Client) -> None:
    plain = good(server.ask())["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"]
    unit = server.service.catalogue.vectors["tiny"].norms[2]
    told = good(server.persona(steering=[{"vector": "tiny", "dose": 0.5}]))
    moved = told["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"]
    assert moved - plain == pytest.approx(0.5 * 10.0, rel=1e-3)  # the card's activation norm is 10
    (steering,) = told["persona"]["steering"]
    assert steering["coef"] == pytest.approx(5.0 / float(unit))
    assert (steering["layer"], steering["positions"], steering["clamped"]) == (2, "response", False)
    capped = good(server.persona(steering=[{"vector": "tiny", "op": "cap", "ceiling": plain - 1}]))
    assert capped["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"] == pytest.approx(plain - 1, abs=1e-3)
    gone = good(server.persona(steering=[{"vector": "tiny", "op": "ablate", "layer": 2}]))
    assert abs(gone["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"]) < 1e-3
    for bound, acts in (("above", False), ("below", True)):
        asked = {"vector": "tiny", "coef": 0.5, bound: plain + 0.01}
        found = good(server.persona(steering=[asked]))["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"]
        assert (found != plain) == acts
    for spread in ({"layer": "all", "coef": 0.1}, {"coef": 0.1, "positions": "all"}):
        good(server.persona(steering=[{"vector": "tiny", **spread}]))


def test_watching_other_layers(server: Client) -> None:
    told = good(server.persona(watch=["tiny", {"vector": "tiny", "layer": 0}]))["choices"][0]["persona"]["projections"]
    assert {name: own["layer"] for name, own in told.items()} == {"tiny": 2, "tiny@0": 0}
    every = good(server.persona(watch=[{"vector": "tiny", "layer": "all"}]))["choices"][0]["persona"]["projections"]
    assert [own["layer"] for own in every.values()] == [0, 1, 2, 3]
    assert good(server.persona(watch=[]))["choices"][0]["persona"]["projections"] == {}


def test_defaults_of_the_command_line(options: dict[str, Any], saved: tuple[Path, Path]) -> None:
    steer = (f"{saved[1]}:0.3d",)
    with client(ServeConfig(**options, steer=steer, watch=("none",))) as server:
        told = good(server.ask())
        assert told["persona"]["steering"][0]["dose"] == pytest.approx(0.3)
        assert told["choices"][0]["persona"]["projections"] == {}
        assert good(server.persona(steering=[]))["persona"]["steering"] == []
        vector = good(server.get("/v1/vectors"))["data"][0]
        assert vector["default_dose"] == pytest.approx(0.3) and not vector["watched"]
        assert vector["difference"] == pytest.approx(float(load_vector(saved[1]).norms[2]))


def test_what_clients_send_by_habit_is_taken(server: Client) -> None:
    good(
        server.ask(
            frequency_penalty=0,
            presence_penalty=0.0,
            user="me",
            tools=None,
            response_format={"type": "text"},
            logit_bias={},
        )
    )
    good(
        server.ask(
            messages=[
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            ]
        )
    )


def test_reports_open_by_links_that_only_the_key_tells(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "report.html"
    page.write_text("<p>A report")
    monkeypatch.setenv("PERSONAVEC_API_KEY", "secret")
    with client(ServeConfig(**options), {"demo/tiny": page}) as server:
        (link,) = good(server.get("/v1/reports", headers={"authorization": "Bearer secret"}))["data"]
        found = server.get(link["url"])
        assert (link["name"], found.text) == ("demo/tiny", "<p>A report")
        assert "sandbox" in found.headers["content-security-policy"]


def test_a_second_turn_reads_only_what_is_new(server: Client) -> None:
    """Its usage says so as OpenAI does, and the counters tell what was read from what was reused."""
    said = [{"role": "user", "content": "Tell me about the sea, the ships and the wind"}]
    first = good(server.ask(messages=said))
    said += [{"role": "assistant", "content": first["choices"][0]["message"]["content"]}, said[0]]
    second = good(server.ask(messages=said))
    again = server.events(messages=said, stream_options={"include_usage": True})[-1]["usage"]
    reused = [usage["prompt_tokens_details"]["cached_tokens"] for usage in (first["usage"], second["usage"], again)]
    assert reused[0] == 0 < reused[1] < second["usage"]["prompt_tokens"] and reused[2] >= reused[1]
    prompts = first["usage"]["prompt_tokens"] + 2 * second["usage"]["prompt_tokens"]
    text = server.get("/metrics").text
    assert f'personavec_tokens_total{{kind="read"}} {prompts - sum(reused)}.0' in text
    assert f'personavec_tokens_total{{kind="reused"}} {sum(reused)}.0' in text
    assert f"personavec_prefix_bytes {server.service.engine.prefixes.bytes}.0" in text
