/** The routes of checkpoint-engine's own server on a Unix socket: its answers are empty, its errors bare texts. */
export class PeerServer {
  readonly pid: number
  readonly #socket: string

  constructor(socket: string, pid: number) {
    this.#socket = socket
    this.pid = pid
  }

  async answers(): Promise<boolean> {
    try {
      await this.#request('GET', '/v1/healthz')
      return true
    } catch {
      return false
    }
  }

  register(name: string, request: { files: readonly string[] }): Promise<void> {
    return this.#request('POST', `/v1/checkpoints/${name}/files`, request)
  }

  gather(name: string): Promise<void> {
    return this.#request('POST', `/v1/checkpoints/${name}/gather-metas`, {})
  }

  update(name: string, request: { update_url: string; timeout: number }): Promise<void> {
    return this.#request('POST', `/v1/checkpoints/${name}/update`, request)
  }

  drop(name: string): Promise<void> {
    return this.#request('DELETE', `/v1/checkpoints/${name}`)
  }

  /** @throws Error with what the server answers when it is not a success */
  async #request(method: string, path: string, body?: unknown): Promise<void> {
    const response = await fetch(`http://localhost${path}`, {
      method,
      unix: this.#socket,
      proxy: false,
      timeout: false,
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      headers: { 'content-type': 'application/json' },
    })
    const text = await response.text()
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text.slice(0, 500)}`)
  }
}
