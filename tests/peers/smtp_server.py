"""A mail server (aiosmtpd) that does what the file DIR/mode and the recipient's name tell it.

The recipient's name: `r550` is refused so after RCPT, `d451` after its mail; any such number.
The mode, read for each mail: `hang` never answers, `lose` takes the mail and answers nothing,
`421` and such answer so, `slow` waits 20 ms. Mails are lines of JSON in DIR/mails.
"""

import argparse
import asyncio
import email
import email.policy
import json
import os
import signal
import ssl

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

options = argparse.ArgumentParser()
options.add_argument("--dir", required=True)
options.add_argument("--port", type=int, required=True)
options.add_argument("--tls", default="none")
options.add_argument("--cert")
options.add_argument("--key")
options.add_argument("--auth", help="USER:PASSWORD")
options.add_argument("--mechanisms", default="PLAIN,LOGIN")
options = options.parse_args()


def mode():
    try:
        with open(os.path.join(options.dir, "mode")) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        name = address.partition("@")[0]
        if name.startswith("r") and name[1:].isdigit():
            return f"{name[1:]} not here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        now = mode()
        if now == "hang":
            await asyncio.sleep(3600)
        if now == "slow":
            await asyncio.sleep(0.02)
        if now.isdigit():
            return f"{now} as told"
        name = envelope.rcpt_tos[0].partition("@")[0]
        if name.startswith("d") and name[1:].isdigit():
            return f"{name[1:]} not this"
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        line = {
            "to": envelope.rcpt_tos,
            "subject": mail["subject"],
            "id": mail["message-id"],
            "text": mail.get_content().replace("\r\n", "\n"),
            "headers": sorted(mail.keys()),
            "tls": server.transport.get_extra_info("sslcontext") is not None,
            "user": getattr(session.auth_data, "login", b"").decode(),
        }
        with open(os.path.join(options.dir, "mails"), "a") as mails:
            mails.write(json.dumps(line) + "\n")
        if now == "lose":
            server.transport.abort()
            await asyncio.sleep(3600)
        return "250 taken"


def authenticator(server, session, envelope, mechanism, data):
    if isinstance(data, LoginPassword):
        given = data.login.decode() + ":" + data.password.decode()
        if given == options.auth:
            return AuthResult(success=True, auth_data=data)
    return AuthResult(success=False, handled=False)


async def main():
    context = None
    if options.cert:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.cert, options.key)
    excluded = {"PLAIN", "LOGIN"} - set(options.mechanisms.split(","))

    def protocol():
        return SMTP(
            Handler(),
            tls_context=context if options.tls == "starttls" else None,
            require_starttls=options.tls == "starttls",
            authenticator=authenticator if options.auth else None,
            auth_required=bool(options.auth),
            auth_require_tls=options.tls == "starttls",
            auth_exclude_mechanism=excluded,
            enable_SMTPUTF8=True,
        )

    loop = asyncio.get_running_loop()
    await loop.create_server(
        protocol,
        "127.0.0.1",
        options.port,
        ssl=context if options.tls == "tls" else None,
        reuse_address=True,
    )
    await asyncio.sleep(100000)


signal.signal(signal.SIGTERM, signal.SIG_DFL)
asyncio.run(main())
