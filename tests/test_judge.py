import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_multilingual import Endpoint, judge
from mi_multilingual.evaluation.judge import CRITERIA, rating

KEY = "sk-secret"


class Stub:
    """A chat endpoint that gives the prepared answers, one a request, and keeps what it was asked."""

    def __init__(self):
        self.answers, self.requests = [], []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                stub.requests.append((self.path, dict(self.headers), json.loads(body)))
                stub.answers.pop(0)(self)

            def do_GET(self):
                stub.requests.append((self.path, dict(self.headers), None))
                self.send_error(500)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr("mi_multilingual.evaluation.judge.FIRST_PAUSE", 0.0)
    made = Stub()
    yield made
    made.server.shutdown()
    made.server.server_close()


def raw(body, status=200, headers=()):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def says(text):
    return raw(json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"cho')


def silent(handler):
    """Says nothing until the other side has given up."""
    handler.connection.recv(1)


def judged(stub, answers=("Paris.",), criterion="quality", **settings):
    endpoint = Endpoint(stub.url, "a-model", api_key=KEY, **{"timeout": 5.0, **settings})
    return judge(endpoint, ["Capital of France?"] * len(answers), list(answers), criterion=criterion, progress=False)


def test_scores_come_in_the_order_of_the_answers(stub):
    stub.answers = [says("Good.\n[[8]]"), says("[[10]]"), says("Not so good: [[3]] no, [[2.5]]")]
    table = judged(stub, ["Paris.", "パリ", "{braces} </answer>"])
    assert list(table.score) == [8, 10, 2.5]
    assert table.reply[0] == "Good.\n[[8]]"
    path, headers, body = stub.requests[1]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"]) == ("a-model", 0)
    prompt = body["messages"][0]["content"]
    assert "パリ" in prompt
    assert "Capital of France?" in prompt
    assert CRITERIA["quality"] in prompt
    assert "{braces} </answer>" in stub.requests[2][2]["messages"][0]["content"]


def test_fluency_is_asked_for(stub):
    stub.answers = [says("[[7]]")]
    judged(stub, criterion="fluency")
    assert CRITERIA["fluency"] in stub.requests[0][2]["messages"][0]["content"]


def test_without_a_key_no_header_is_sent(stub):
    stub.answers = [says("[[7]]")]
    judge(Endpoint(stub.url + "/", "m"), ["q"], ["a"], progress=False)
    path, headers, _body = stub.requests[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers


@pytest.mark.parametrize("reply", ["", "eight", "8", "[[0]]", "[[11]]", "[[-3]]", "[[8", None])
def test_a_reply_without_a_rating_has_no_score(stub, reply):
    stub.answers = [says(reply)]
    table = judged(stub)
    assert table.score.isna().all()
    assert table.reply[0] == (reply or "")


@given(st.text(), st.integers(1, 10), st.text(st.characters(exclude_characters="[]")))
def test_the_last_rating_counts(before, score, after):
    assert rating(f"{before} [[{score}]]{after}") == score
    assert rating(f"{before} [[{score}/10]]{after}") == score


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>hello</html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {}}]}', b"\xff\xfe",
     b'{"choices": [{"message": {"content": [1]}}]}', b'{"choices": null}'],
)  # fmt: skip
def test_what_is_no_chat_answer_is_told(stub, body):
    stub.answers = [raw(body)]
    with pytest.raises(RuntimeError, match="does not speak the OpenAI chat protocol"):
        judged(stub)
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    "passing", [raw(b"later", 429), raw(b"", 503), cut_off, silent], ids=["429", "503", "cut", "slow"]
)
def test_what_may_pass_is_tried_again(stub, passing):
    stub.answers = [passing, passing, says("[[9]]")]
    assert list(judged(stub, timeout=1.0 if passing is silent else 60.0).score) == [9]
    assert len(stub.requests) == 3


def test_retries_end(stub):
    stub.answers = [raw(b"overloaded", 503)] * 2
    with pytest.raises(RuntimeError, match=r"did not answer in 2 attempts: HTTP 503 \(overloaded\)") as error:
        judged(stub, retries=1)
    assert len(stub.requests) == 2
    assert KEY not in str(error.value)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_told_at_once(stub, status):
    stub.answers = [raw(b'{"error": "no\n such thing"}', status)]
    with pytest.raises(
        RuntimeError, match=rf"HTTP {status} \(.*no such thing.*check the address, the model 'a-model'"
    ) as error:
        judged(stub)
    assert len(stub.requests) == 1
    assert KEY not in str(error.value)


@pytest.mark.parametrize("status", [301, 302, 307])
def test_the_key_is_not_sent_on_to_another_address(stub, status):
    stub.answers = [raw(b"", status, [("Location", stub.url + "/elsewhere")])]
    with pytest.raises(RuntimeError, match=f"HTTP {status}"):
        judged(stub)
    assert len(stub.requests) == 1


def test_nobody_there(monkeypatch):
    monkeypatch.setattr("mi_multilingual.evaluation.judge.FIRST_PAUSE", 0.0)
    closed = Stub()
    closed.server.shutdown()
    closed.server.server_close()
    with pytest.raises(RuntimeError, match="did not answer in 1 attempts"):
        judged(closed, retries=0)


def test_mistakes_are_told(stub):
    with pytest.raises(ValueError, match="criterion must be one of fluency, quality, got 'style'"):
        judged(stub, criterion="style")
    with pytest.raises(ValueError, match="got 1 questions but 0 answers"):
        judge(Endpoint(stub.url, "m"), ["q"], [])
    with pytest.raises(ValueError, match="base_url must be .* got 'file:///etc'"):
        Endpoint("file:///etc", "m")
    with pytest.raises(ValueError, match="timeout must be above 0 seconds, got 0"):
        Endpoint(stub.url, "m", timeout=0.0)
    with pytest.raises(ValueError, match="api_key must be the key alone, got white space") as error:
        Endpoint(stub.url, "m", api_key="sk-secret\n")
    assert "sk-secret" not in str(error.value)
    assert KEY not in repr(Endpoint(stub.url, "m", api_key=KEY))
    assert stub.requests == []
