# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The documented systemd timer writes metrics for node_exporter, and root never follows links in its folder."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path

import pytest
from lab import HOSTS, eventually, run

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "monitoring.md"
UNITS = dict(re.findall(r"```ini\n# (/etc/\S+)\n(.*?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL))
FOLDER = "/var/lib/prometheus/node-exporter"
HOST = "hapgent-trixie"
UP = 'hapgent_up{socket="/run/hapgent/hapgent/status.sock",service="hapgent"} 1\n'


@pytest.fixture
def _timer() -> Generator[None, None, None]:
    assert len(UNITS) == 2
    # Debian's node_exporter package creates this user and this folder.
    create = f"useradd --system prometheus && mkdir -p {FOLDER} && chown -R prometheus: /var/lib/prometheus"
    assert run(HOST, create).returncode == 0
    for path, content in UNITS.items():
        assert run(HOST, f"cat >{path} <<'END'\n{content}\nEND").returncode == 0
    yield
    run(
        HOST,
        "systemctl disable --now hapgent-metrics.timer; systemctl stop hapgent-metrics.service; "
        f"rm -r /var/lib/prometheus {' '.join(UNITS)}; "
        "systemctl daemon-reload; userdel prometheus",
    )


@pytest.mark.usefixtures("_timer")
def test_documented_timer_writes_metrics() -> None:
    units = "hapgent-metrics.timer hapgent-metrics.service"
    assert run(HOST, f"systemd-analyze verify {units}").stderr == ""
    # The units are as documented, except for the group of this host's agent and a shorter interval.
    service = "/etc/systemd/system/hapgent-metrics.service"
    assert run(HOST, f"sed -i 's/=nogroup$/=www-data/' {service}").returncode == 0
    shorten = "sed -i 's/=15s/=1s/' /etc/systemd/system/hapgent-metrics.timer"
    assert run(HOST, f"{shorten} && systemctl enable --now hapgent-metrics.timer").returncode == 0

    def metrics() -> str:
        return run(HOST, f"cat {FOLDER}/hapgent.prom").stdout

    assert eventually(lambda: UP in metrics(), True)
    for address in HOSTS.values():
        assert re.search(rf'^hapgent_peer_polls{{.*peer="{address}"}} 1$', metrics(), re.MULTILINE)
    # The timer fires repeatedly, and each run replaces the file.
    written = run(HOST, f"stat --format=%i {FOLDER}/hapgent.prom").stdout
    assert eventually(lambda: run(HOST, f"stat --format=%i {FOLDER}/hapgent.prom").stdout != written, True)
    assert run(HOST, f"stat --format=%U {FOLDER}/hapgent.prom").stdout == "prometheus\n"


@pytest.mark.usefixtures("_timer")
def test_root_does_not_write_through_a_link_in_the_exporters_folder() -> None:
    run(HOST, f"echo kept >/etc/victim && ln -s /etc/victim {FOLDER}/hapgent.prom.new")
    run(HOST, "systemctl daemon-reload; systemctl start hapgent-metrics.service")
    assert run(HOST, "cat /etc/victim; rm /etc/victim").stdout == "kept\n"
