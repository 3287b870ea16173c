import { api, type Access, type ApiError, type Key, type Kind, type Member } from "./api";
import { session } from "./session.svelte";

/** Keys and who they belong to, as the keys page and the organisations page show them. */
class People {
  keys = $state.raw<Key[] | null>(null);
  access = $state.raw<Access | null>(null);
  orgs = $state.raw<Member[]>([]);
  teams = $state.raw<Member[]>([]);
  users = $state.raw<Member[]>([]);
  error = $state.raw<ApiError | null>(null);
  ready = $state(false);

  /** Everything anew. What is shown stays until it is there. */
  async load(): Promise<void> {
    try {
      const [keys, access, orgs, teams, users] = await Promise.all([
        api.keys(), api.access(), api.members("org"), api.members("team"), api.members("user"),
      ]);
      Object.assign(this, { keys, access, orgs, teams, users, error: null, ready: true });
    } catch (e) {
      this.error = session.meet(e);
    }
  }

  of(kind: Kind): Member[] {
    return { org: this.orgs, team: this.teams, user: this.users }[kind];
  }
}

export const people = new People();
