#!/usr/bin/env bash
# Exit status 0 if each model answers under its label "stable". The image has bash and no curl.
#
# A model's status page (/v1/models/NAME) is HTTP 200 in any state and leaves the label out of account; its signatures are
# answered by a version that is loaded only. So this asks for those of the label, and reads the body.
set -euo pipefail
host=${1:-127.0.0.1}
port=${2:-8501}

answers() {
    exec 3<>"/dev/tcp/$host/$port" || return 1
    printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$1" "$host" >&3
    # To the end of the answer: a reader that goes away early would break the server's connection.
    timeout 4 cat <&3 | grep -c '"signature_def"' >/dev/null || { echo "$1 is not available" >&2; return 1; }
    exec 3>&-
}

{% for model in models %}
answers ${{ model.url | shell }}/labels/stable/metadata
{% endfor %}
