# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Written by files/build.py from files/hapgent/usage.py.

# bash splits words also at characters such as @ and =, and replaces only a part of what was typed, which is $2. So the
# words are taken from the line itself, and each reply loses what bash keeps.
_hapgent() {
    local line=${COMP_LINE:0:COMP_POINT} current='' previous='' command='' words=() replies=''
    read -ra words <<<"$line"
    if [[ $line != *[[:space:]] ]]; then
        current=${words[-1]}
        unset 'words[-1]'
    fi
    ((${#words[@]})) || return
    previous=${words[-1]}
    command=${words[1]-}

    if [[ -z $command ]]; then
        replies='drain undrain up down maint ready set status weigh load pressure --help --version --services'
    elif [[ $previous == --service ]]; then
        replies=$(_hapgent_services "${words[0]}")
    elif [[ $previous == --then ]]; then
        replies='up'
    elif [[ $previous == --reason ]]; then
        return
    else
        case $command in
        drain) replies='--reason --until --then --wait --service --all --help' ;;
        undrain) replies='--reason --until --then --wait --service --all --help' ;;
        up) replies='--reason --until --then --wait --service --all --help' ;;
        down) replies='--reason --until --then --wait --service --all --help' ;;
        maint) replies='--reason --until --then --wait --service --all --help' ;;
        ready) replies='--reason --until --then --wait --service --all --help' ;;
        set) replies='weight= maxconn= reason= by= until= then= --reason --until --then --wait --service --all --help' ;;
        status) replies='--watch --service --json --prometheus --help' ;;
        weigh) replies='--service --min --max --step --smoothing --fallback --weight --maxconn --restore --help' ;;
        load) replies='--help' ;;
        pressure) replies='--help' ;;
        *) return ;;
        esac
    fi

    local reply kept=${current%"$2"}
    COMPREPLY=()
    read -d '' -ra words <<<"$replies"
    for reply in "${words[@]}"; do
        if [[ $reply == "$current"* ]]; then
            COMPREPLY+=("${reply#"$kept"}")
        fi
    done
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace
    fi
    if [[ $command == status && $current != -* && $previous != --service ]]; then
        compopt -o default
    fi
}

# Prints the services of this host, also by the short names of the instances.
_hapgent_services() {
    local service
    while IFS='' read -r service; do
        printf '%s\n' "$service"
        if [[ $service == hapgent@* ]]; then
            printf '%s\n' "${service#hapgent@}"
        fi
    done < <("$1" --services 2>/dev/null)
}

complete -F _hapgent hapgent
