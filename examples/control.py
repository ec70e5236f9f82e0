"""Asks FedPEFT's control API with JSON. Any client of NATS can; this one is nats-py (pip install nats-py).

    python3 control.py runs.list '{}'
    python3 control.py runs.create '{"run": "first", "spec": {"model": {"name": "vit"}, "rounds": 3, "cohort": 4}}'
    python3 control.py --server nats://broker:4222 --creds researcher.creds runs.get '{"run": "first"}'
"""

import argparse
import asyncio
import json
import sys

import nats
from nats.errors import NoRespondersError


async def ask(server, creds, endpoint, request):
    """The reply as text, or an error of one line."""
    broker = await nats.connect(server, user_credentials=creds, connect_timeout=5, allow_reconnect=False)
    try:
        reply = await broker.request(f"fedpeft.v1.api.{endpoint}", request.encode(), timeout=30)
    except NoRespondersError:
        sys.exit(f"error: nobody answers to {endpoint}: is the service running?")
    finally:
        await broker.close()
    headers = reply.headers or {}
    if code := headers.get("Nats-Service-Error-Code"):
        sys.exit(f"error {code}: {headers.get('Nats-Service-Error')}")
    return reply.data.decode()


def main():
    parser = argparse.ArgumentParser(description="Ask FedPEFT's control API with JSON.")
    parser.add_argument("--server", default="nats://127.0.0.1:4222", help="address of the NATS server")
    parser.add_argument("--creds", help="NATS credentials file")
    parser.add_argument("endpoint", help="runs.create, runs.list, runs.get, models.list, ...")
    parser.add_argument("request", help="the request as JSON")
    args = parser.parse_args()
    reply = asyncio.run(ask(args.server, args.creds, args.endpoint, args.request))
    print(json.dumps(json.loads(reply), indent=2))


if __name__ == "__main__":
    main()
