import { mount } from "svelte";
import App from "./App.svelte";
import "./app.css";
import { speech } from "./lib/i18n.svelte";

await speech.start();
mount(App, { target: document.getElementById("app")! });
