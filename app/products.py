"""The products: unit prices and available quantities, in the collection `inventory`."""

from collections.abc import Iterable, Mapping

from pymongo import UpdateOne
from pymongo.errors import DuplicateKeyError

from app.domain import MAX_STOCK, KeyReused, NotFound, Product
from app.mongo import Document, Mongo, NotReplicated, Session
from app.validation import IDENTIFIER


class StockLimitReached(Exception):
    """The stock of a product cannot exceed `MAX_STOCK`."""


class ProductRepository:
    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._products = mongo.inventory
        self._restocks = mongo.restocks

    async def by_sku(self, skus: Iterable[str]) -> dict[str, Product]:
        """Return those of the products that exist, by SKU."""
        found = self._products.find({"_id": {"$in": list(skus)}})
        return {product.sku: product async for document in found if (product := Product.from_document(document))}

    async def page(self, limit: int, after: str | None) -> tuple[list[Product], str | None]:
        """Return a page of products by SKU, and the SKU after which the next page begins."""
        query = {"_id": {"$gt": after or "", "$regex": IDENTIFIER}}  # another program may have written other ids
        documents = await self._products.find(query).sort("_id", 1).limit(limit + 1).to_list(None)
        last = documents[limit - 1]["_id"] if len(documents) > limit else None
        return [product for document in documents[:limit] if (product := Product.from_document(document))], last

    async def get(self, sku: str) -> Product:
        """Raises: NotFound."""
        products = await self.by_sku([sku])
        if sku not in products:
            raise NotFound(f"product {sku}")
        return products[sku]

    async def put(self, product: Product) -> bool:
        """Create or replace a product; return True if it was created."""
        fields = product.model_dump(exclude={"sku"})
        result = await self._products.update_one({"_id": product.sku}, {"$set": fields}, upsert=True)
        return result.upserted_id is not None

    async def restock(self, restock_id: str, fingerprint: str, sku: str, quantity: int) -> bool:
        """Add to the available quantity, once per `restock_id`; return False if an earlier request did.

        Raises:
            KeyReused: the id belongs to another restock.
            NotReplicated: an earlier request's restock was rolled back.
            NotFound, StockLimitReached
        """

        async def once(session: Session) -> None:
            await self._restocks.insert_one({"_id": restock_id, "fingerprint": fingerprint}, session=session)
            fits = {"_id": sku, "available": {"$lte": MAX_STOCK - quantity}}
            result = await self._products.update_one(fits, {"$inc": {"available": quantity}}, session=session)
            if result.matched_count == 0:
                await self.get(sku)
                raise StockLimitReached

        try:
            await self._mongo.run_transaction(once)
        except DuplicateKeyError:
            earlier = await self._mongo.find_durable(self._restocks, restock_id)
            if earlier is None:
                raise NotReplicated from None
            if earlier["fingerprint"] != fingerprint:
                raise KeyReused from None
            return False
        return True

    # --- within the transaction of a reservation

    async def available(self, skus: Iterable[str], session: Session) -> dict[str, int]:
        """Return available quantities by SKU; raises TypeError if another program wrote one that is not an integer."""
        found = self._products.find({"_id": {"$in": list(skus)}}, {"available": 1}, session=session)
        stock: Document = {document["_id"]: document.get("available") for document in await found.to_list(None)}
        for sku, quantity in stock.items():
            if not isinstance(quantity, int) or isinstance(quantity, bool):  # NaN would pass every comparison
                raise TypeError(f"product {sku}: available must be a whole number")
        return stock

    async def change_available(self, changes: Mapping[str, int], session: Session) -> None:
        writes = [UpdateOne({"_id": sku}, {"$inc": {"available": change}}) for sku, change in changes.items()]
        await self._products.bulk_write(writes, session=session)
