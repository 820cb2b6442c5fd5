"""Initiate the replica set of docker-compose.yml and create its accounts.

    python mongodb_setup.py mongodb-1:27017 mongodb-2:27017 mongodb-3:27017

Runs on the host of the first member: as long as there is no account, MongoDB accepts clients from localhost only. May
run again at any time: it adds what is missing, and brings roles and passwords up to date.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure

ACCOUNT_EXISTS = 13  # the code of "unauthorized": localhost is no exception any more
ALREADY_INITIATED = 23
CONFIGURATION_CHANGES = (103, 109, 308)  # a member that was just added changes the configuration, too


def main(members: Sequence[str]) -> None:
    """Set up a replica set of `members`, each `host:port`.

    Raises:
        pymongo.errors.PyMongoError: a member does not answer within 30 s, or the root password is wrong.
    """
    found(members[0], os.environ["MONGODB_ROOT_PASSWORD"])
    client: MongoClient[dict[str, Any]]
    with MongoClient(
        list(members), replicaSet="rs0", username="root", password=os.environ["MONGODB_ROOT_PASSWORD"]
    ) as client:
        for member in members:
            add(client, member)
        # A new member votes once it has all data. Until then, the set does not survive the loss of its primary.
        print("waiting until every member has all data", flush=True)
        while client.admin.command("replSetGetStatus")["votingMembersCount"] < len(members):
            time.sleep(0.2)
        for role in json.loads(Path(__file__).with_name("mongodb-roles.json").read_text()):
            grant(client, role, os.environ[f"MONGODB_{role['createRole'].upper()}_PASSWORD"])


def found(member: str, root_password: str) -> None:
    """Initiate the replica set with its first member alone, and create the account `root`, unless that was done."""
    client: MongoClient[dict[str, Any]]
    with MongoClient("127.0.0.1", int(member.rpartition(":")[2]), directConnection=True) as client:
        try:
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": member}]})
        except OperationFailure as error:
            if error.code == ACCOUNT_EXISTS:
                return
            if error.code != ALREADY_INITIATED:
                raise
        while not client.admin.command("hello")["isWritablePrimary"]:
            time.sleep(0.2)
        client.admin.command("createUser", "root", pwd=root_password, roles=["root"])


def add(client: MongoClient[dict[str, Any]], member: str) -> None:
    """Add a member, unless the replica set has it. MongoDB permits one at a time."""
    while True:
        config = client.admin.command("replSetGetConfig")["config"]
        if member in [known["host"] for known in config["members"]]:
            return
        config["members"].append({"_id": len(config["members"]), "host": member})
        config["version"] += 1
        try:
            client.admin.command("replSetReconfig", config)
        except OperationFailure as error:
            if error.code not in CONFIGURATION_CHANGES:
                raise
            time.sleep(0.2)


def grant(client: MongoClient[dict[str, Any]], role: dict[str, Any], password: str) -> None:
    """Create a role and the account of the same name, or change both to what they should be."""
    database, name = client[role["privileges"][0]["resource"]["db"]], role["createRole"]
    verb = "update" if database.command("rolesInfo", name)["roles"] else "create"
    database.command(f"{verb}Role", name, privileges=role["privileges"], roles=role["roles"])
    verb = "update" if database.command("usersInfo", name)["users"] else "create"
    database.command(f"{verb}User", name, pwd=password, roles=[name])


if __name__ == "__main__":
    main(sys.argv[1:])
