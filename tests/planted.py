"""Secrets of every kind that the safety filters find; none is anyone's."""

import base64

BODY = base64.b64encode(bytes(range(60, 200))).decode()
PEM = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,3F17\n\n"
PEM += f"{BODY[:64]}\n{BODY[64:128]}\nK9P=\n-----END RSA PRIVATE KEY-----"
TEXTS = ("open sesame", "sesame oil", "opens")  # as the policy has them
SECRETS = {
    "email": [
        "jane.doe+x@mail.example.co.uk",
        "m\u00fcller@b\u00fccher.de",
        "o\u2019brien@x.ie",
        "\uff4a\uff41\uff4e\uff45\uff20example.com",  # full width
        "a@b.co",
        "r&d@example.com",
        "jane@example.xn--p1ai",
        "\u0438\u0432\u0430\u043d2@\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444",
    ],
    "phone": [
        "+49 (0)30 1234-567",
        "+1 (212) 555-0123",
        "2125550123",
        "212 555 0123",
        "0044 20 7946 0958",
        "020 7946 0958",
        "(212)555-0123x123",
        "01.23.45.67.89",
        "+\uff11 \uff12\uff11\uff12 \uff15\uff15\uff15 \uff10\uff11\uff12\uff13",
    ],
    "card": [
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "4111\n1111\r\n1111\n1111",
        "4111 1111 \u2013 1111\u00a01111",
        "\u0664\u0661\u0661\u0661 \u0661\u0661\u0661\u0661 \u0661\u0661\u0661\u0661 "
        "\u0661\u0661\u0661\u0661",  # Arabic-Indic digits
        "4111\u200b1111\u200b1111\u200b1111",  # zero-width spaces
        "3782 822463 10005",
        "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "4111/1111_1111    1111",
        "4111** **1111 \u00b7 1111 \u2022 1111",
        r"4111\n1111\r\n1111\t1111",
    ],
    "iban": [
        "DE89370400440532013000",
        "de89 3704 0044 0532 0130 00",
        "GB82 WEST 1234 5698\n7654 32",
        "D\u041589 3704 0044 0532 0130 00",  # a Cyrillic letter
        "NO93 8601 1117 947",
    ],
    "ip": ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "2a00:1450::"],
    "ssn": ["123-45-6789", "123 45\n6789"],
    "api_key": [
        "sk-proj-abc123DEF456ghi789JKL0",
        "ghp_" + "a1B2" * 9,
        "AKIAIOSFODNN7EXAMPL7",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    ],
    "private_key": [PEM, PEM.replace("\n", "\\n"), PEM[:140]],
    "secret": ["Open Sesame", "open\nsesame", "sesame oil", "open \n   sesame"],
}
