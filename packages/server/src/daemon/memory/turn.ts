/** Lets the other requests of the memory Worker run between two blocking native calls. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
