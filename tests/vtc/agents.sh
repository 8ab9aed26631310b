#!/bin/sh
# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Run agents in the folders 1, 2, ... on the addresses 127.0.1.1, 127.0.1.2, ... until varnishtest sends TERM to this
# process group, or ends.
# usage: agents.sh COUNT PORT

set -eu
trap : TERM HUP
program=$(dirname "$0")/../../roles/hapgent/files/hapgent.pyz
export HAPGENT_PORT="$2" HAPGENT_STATE_FILE=state.json HAPGENT_SOCKET=status.sock
# For so many seconds after a change, an agent also sends the keywords that reset the previous state. With 0, it never
# does, and the tests fail.
export HAPGENT_SETTLE="${HAPGENT_SETTLE-1}"
for number in $(seq "$1"); do
    mkdir "$number"
    echo '{"status": "UP"}' >"$number/state.json"
    (cd "$number" && HAPGENT_IP=127.0.1.$number exec python3 "$program") &
done
cat >/dev/null || true
kill 0
wait
