// Conversations stay in this browser: IndexedDB, since images make them larger than localStorage takes.

const STORE = "conversations";

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

export class Storage {
  #database = null;

  /** All conversations; none where the browser keeps nothing, as in some private windows. */
  async loadAll() {
    try {
      const opening = indexedDB.open("paceline", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
      this.#database = await result(opening);
      return await result(this.#store("readonly").getAll());
    } catch (error) {
      console.warn("Conversations are not kept:", error);
      return [];
    }
  }

  save(conversation) {
    this.#store("readwrite")?.put(conversation);
  }

  remove(id) {
    this.#store("readwrite")?.delete(id);
  }

  #store(mode) {
    return this.#database?.transaction(STORE, mode).objectStore(STORE);
  }
}
