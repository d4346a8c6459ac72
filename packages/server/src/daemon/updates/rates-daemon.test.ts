import { expect, setDefaultTimeout, test } from 'bun:test'
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { TestDir } from '../registry/testing/fixture.ts'

setDefaultTimeout(60_000)

/** What a daemon says of its device at once and after a while, on a link of so many bytes a second. */
async function daemonOn(stateDir: string, bytesPerSecond: number, patienceMs: number) {
  const program = join(import.meta.dir, 'testing/rates-program.ts')
  const env = { ...process.env, CKPT_HOST_COPY_BYTES_PER_SECOND: String(bytesPerSecond) }
  const command = [process.execPath, program, stateDir, String(patienceMs)]
  const child = Bun.spawn(command, { env, stderr: 'inherit' })
  return JSON.parse(await new Response(child.stdout).text())
}

test('a daemon that is left alone measures its device, and the next one of its state directory does not', async () => {
  const dir = new TestDir()
  try {
    const { first, last, left } = await daemonOn(dir.path, 100e6, 20_000)
    expect(first.from).toBe('default')
    expect(last.from).toBe('measured')
    expect(last.bytes_per_second).toBeGreaterThan(100e6 / 3)
    expect(last.bytes_per_second).toBeLessThan(100e6 * 3)
    expect(left).toBe(0)

    const file = join(dir.path, 'rates.json')
    const { mtimeNs } = statSync(file, { bigint: true })
    const next = await daemonOn(dir.path, 2000e6, 2500)
    expect(next).toEqual({ first: last, last, left: 0 })
    expect(statSync(file, { bigint: true }).mtimeNs).toBe(mtimeNs)
    expect(JSON.parse(readFileSync(file, 'utf8')).devices).toHaveLength(1)
  } finally {
    dir.remove()
  }
})
