"""Derive every address of the project from repository.url in _config.yml.

In the pages of book/ the words `{{ repository }}`, `{{ folder }}` and
`{{ site }}` stand for the address of the repository, the name of its folder
after `git clone`, and the address of the published book. They are replaced
before the page is parsed, so they work inside code blocks too.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

# What Jupyter Book fills in where _config.yml has no repository.url.
PLACEHOLDER = "https://github.com/executablebooks/jupyter-book"


class Repository(NamedTuple):
    """The repository as _config.yml names it."""

    url: str
    branch: str
    colab: str

    @property
    def owner(self) -> str:
        return urlsplit(self.url).path.strip("/").split("/")[0]

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.strip("/").split("/")[1]

    @property
    def site(self) -> str:
        """Where GitHub Pages publishes the book."""
        return f"https://{self.owner}.github.io/{self.name}/"

    def source(self, path: str) -> str:
        """Address of a file as GitHub shows it."""
        return f"{self.url}/blob/{self.branch}/{path}"

    def in_colab(self, path: str) -> str:
        """Address that opens a notebook in Colab."""
        where = f"github/{self.owner}/{self.name}/blob/{self.branch}"
        return f"{self.colab}/{where}/{path}"


def repository(config: Config) -> Repository:
    """Read the repository from the configuration, or fail with advice."""
    options = config.html_theme_options
    url = (options.get("repository_url") or "").rstrip("/")
    if url == PLACEHOLDER or not re.fullmatch(
        r"https://github\.com/[\w.-]+/[\w.-]+", url
    ):
        raise ConfigError(
            "_config.yml must name the repository as repository.url: "
            f"https://github.com/OWNER/NAME, got {url!r}"
        )
    colab = options.get("launch_buttons", {}).get("colab_url", "")
    return Repository(
        url, options.get("repository_branch", "main"), colab.rstrip("/")
    )


def set_site(app: Sphinx, config: Config) -> None:
    """Give Sphinx and OpenGraph the address of the published book."""
    config.html_baseurl = config.ogp_site_url = repository(config).site


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the words for the addresses in a page."""
    repo = repository(app.config)
    for word, address in {
        "{{ repository }}": repo.url,
        "{{ folder }}": repo.name,
        "{{ site }}": repo.site,
    }.items():
        source[0] = source[0].replace(word, address)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", set_site)
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
