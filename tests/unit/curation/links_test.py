"""WebText's links: which URLs are the same, which submissions count, and which pages stay."""

import dataclasses
import gzip
import json

import pytest

from gptjax.config.curation import LinkedPages, WithoutDomains
from gptjax.curation import links
from gptjax.curation.page import Dropped, Page


def page(url):
    return Page(0, "a#0", url, "text")


def write(path, *submissions):
    content = "".join(json.dumps(one) + "\n" for one in submissions).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize(
    "url, same",
    [
        ("http://WWW.Example.com:80/", "example.com"),
        ("HTTPS://example.com:443/A/#x?y", "example.com/A"),
        ("//example.com/a", "example.com/a"),
        ("http://example.com:443/a", "example.com:443/a"),
        ("http://example.com/A/?q=B/#f", "example.com/A?q=B/"),
        ("http://example.com?q=1", "example.com?q=1"),
        ("example.com/a?u=http://www.x.com/", "example.com/a?u=http://www.x.com/"),
        (" http://wwwexample.com/www.a ", "wwwexample.com/www.a"),
        ("http://[broken", "[broken"),
        ("http://WWW.example.com./a", "example.com/a"),
        ("http://example.com.:80/a", "example.com/a"),
        ("http://example.com.:8080/a", "example.com:8080/a"),
        ("http://example.com:/a", "example.com/a"),
        ("http://B\u00dcCHER.example/", "xn--bcher-kva.example"),
        ("http://XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("http://bu\u0308cher.example", "xn--bcher-kva.example"),
        ("http://b%C3%BCcher.example", "xn--bcher-kva.example"),
        ("http://stra\u00dfe.example", "xn--strae-oqa.example"),
        ("http://\u4f8b\u5b50\u3002\u4e2d\u56fd/", "xn--fsqu00a.xn--fiqs8s"),
        ("http://a.com/a b/\u00fc?q=c d", "a.com/a%20b/%C3%BC?q=c%20d"),
        ("http://a.com/a%20b/%c3%bc?q=c%20d", "a.com/a%20b/%C3%BC?q=c%20d"),
        ("http://a.com/%7Ejane%2Fx/%41|", "a.com/~jane%2Fx/A%7C"),
        ("http://a.com/100%?a=%zz", "a.com/100%25?a=%25zz"),
        ("http://a.com/%%34%331", "a.com/%25431"),
        ("http://a.com/x+y/%2By", "a.com/x+y/%2By"),
        ("http://a\nb\udc80.com/\udc80", "xn--a\nb-x57p.com/%ED%B2%80"),
        (f"http://{64 * chr(252)}.com", f"{64 * chr(252)}.com"),
        ("", ""),
    ],
)
def test_urls_are_the_same_but_for_what_does_not_matter(url, same):
    assert links.normalize_url(url) == same
    assert links.normalize_url(same) == same


def test_a_link_counts_by_karma_day_and_what_it_is(tmp_path):
    write(
        tmp_path / "a.jsonl",
        {"url": "http://a.com/3", "score": 3, "created_utc": 1514764799},
        {"url": "http://a.com/2", "score": 2},
        {"url": "http://a.com/late", "score": 9, "created_utc": "1514764800"},
        {"url": "http://a.com/self", "score": 9, "is_self": True},
        {"url": None, "score": 9},
        {"url": "", "score": 9},
        {"score": 9},
        {"url": "http://a.com/no"},
        {"url": "http://a.com/null", "score": None},
    )
    write(
        tmp_path / "b.jsonl.gz",
        {"url": "https://www.a.com/3/", "score": 900},
        {"url": "http://a.com/2", "score": 1, "created_utc": None, "is_self": False},
        {"url": "http://a.com/?a=1&amp;b=&lt;&amp;lt;", "score": 3.0},
    )
    found = links.read_links(LinkedPages(links=str(tmp_path)))
    assert found.counts == {
        "with enough karma": 3,
        "with less karma": 2,
        "posted later": 1,
        "of a text, not a page": 1,
        "without url or score": 5,
    }
    assert len(found.hashes) == 2
    assert "a.com/3" in found and "http://a.com?a=1&b=<&lt;" in found
    assert not any(f"http://a.com/{name}" in found for name in ("2", "late", "self", "no", "null"))

    always = links.read_links(LinkedPages(links=str(tmp_path), before=None, karma=2))
    assert "http://a.com/late" in always and "http://a.com/2" in always


def test_links_are_what_was_saved_and_say_which_pages_stay(tmp_path):
    urls = [f"http://site{n}.com/" for n in range(500)]
    write(tmp_path / "a.jsonl", *({"url": url, "score": 5} for url in urls))
    rule = LinkedPages(links=str(tmp_path / "a.jsonl"))
    found = links.read_links(rule)
    links.save(tmp_path / "b", found)
    loaded = links.load(tmp_path / "b")
    assert loaded.counts == found.counts and loaded.hashes.tolist() == found.hashes.tolist()
    stage = links.require_links(rule, loaded)
    assert all(stage(page(url)) == page(url) for url in urls)
    others = [f"http://site{n}.org/" for n in range(500)]
    assert [stage(page(url)) for url in others] == [Dropped("not linked", url) for url in others]
    assert stage(page("")) == Dropped("no url")


def test_bad_dumps_are_refused_in_one_line(tmp_path):
    rule = LinkedPages(links=str(tmp_path / "a.jsonl"))
    write(tmp_path / "a.jsonl", {"url": "http://a.com", "score": 2}, {"id": 1})
    with pytest.raises(ValueError, match=r"no link counts \(lines: 1 with less .*, 1 without url"):
        links.read_links(rule)
    with pytest.raises(ValueError, match="before='2018-': give a day, as 2018-01-01, or None"):
        dataclasses.replace(rule, before="2018-")
    (tmp_path / "a.jsonl").write_text("no json\n")
    with pytest.raises(ValueError, match="a.jsonl line 1 is not JSON"):
        links.read_links(rule)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="a.txt is no link dump: give .jsonl"):
        links.read_links(LinkedPages(links=str(tmp_path / "a.txt")))
    write(tmp_path / "c.jsonl.gz", *({"url": f"a.com/{n}", "score": 3} for n in range(99)))
    content = (tmp_path / "c.jsonl.gz").read_bytes()
    (tmp_path / "c.jsonl.gz").write_bytes(content[:-20])
    with pytest.raises(ValueError, match="c.jsonl.gz is damaged or cut short"):
        links.read_links(LinkedPages(links=str(tmp_path / "c.jsonl.gz")))


def test_of_a_dump_with_a_large_window_the_error_says_what_to_do(tmp_path):
    line = b'{"url": "a.com", "score": 3}\n'
    frame = bytes.fromhex("28b52ffd00a8") + (len(line) << 3 | 1).to_bytes(3, "little") + line
    (tmp_path / "a.jsonl.zst").write_bytes(frame)  # one raw block; a window of 2 GiB
    with pytest.raises(ValueError, match="with a large window: decompress it by zstd -d --long=31"):
        links.read_links(LinkedPages(links=str(tmp_path / "a.jsonl.zst")))


@pytest.mark.parametrize(
    "url, host",
    [
        ("https://wikipedia.org", "wikipedia.org"),
        ("https://EN.Wikipedia.org:443/wiki/GPT-2", "en.wikipedia.org"),
        ("http://me@en.m.wikipedia.org?x", "en.m.wikipedia.org"),
        ("http://EN.WIKIPEDIA.ORG./wiki/Y", "en.wikipedia.org"),
        ("http://wikipedia.org.:80/wiki/Y", "wikipedia.org"),
        ("http://wiki%70edia.org/", "wikipedia.org"),
        ("http://\uff37ikipedia\u3002org/", "wikipedia.org"),
        ("http://a.B\u00dcCHER.de/", "a.xn--bcher-kva.de"),
        ("http://xn--bcher-kva.de/", "xn--bcher-kva.de"),
        ("http://a.xn--strae-oqa.de/", "a.xn--strae-oqa.de"),
        ("http://stra\u00dfe.de/", "xn--strae-oqa.de"),
        ("https://notwikipedia.org/wiki", None),
        ("https://wikipedia.org.example.com/", None),
        ("https://example.com/wikipedia.org", None),
        ("", None),
    ],
)
def test_pages_of_a_domain_and_its_subdomains_go(url, host):
    domains = ("Wikipedia.org", "wikimedia.org", "b\u00fccher.de", "XN--STRAE-OQA.de")
    stage = links.drop_domains(WithoutDomains(domains=domains))
    assert stage(page(url)) == (Dropped("excluded domain", host) if host else page(url))


@pytest.mark.parametrize("domain", ["https://wikipedia.org", "*.wikipedia.org", "", "a.org/b"])
def test_what_is_no_domain_is_refused(domain):
    with pytest.raises(ValueError, match="is no domain; give domains as wikipedia.org"):
        links.drop_domains(WithoutDomains(domains=(domain,)))
