const AGAIN_MS = 20

/** Until `holds` returns what is true, or throws. @throws Error that names `what` after `limitMs` */
export async function until<T>(
  what: string,
  limitMs: number,
  holds: () => T | Promise<T>,
): Promise<Exclude<T, false | null | undefined>> {
  const endMs = performance.now() + limitMs
  for (;;) {
    const value = await holds()
    if (value) return value as Exclude<T, false | null | undefined>
    if (performance.now() >= endMs) throw new Error(`waited ${limitMs} ms for ${what}`)
    await Bun.sleep(AGAIN_MS)
  }
}
